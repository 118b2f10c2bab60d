"""A stranger's RUN: each edit of its files ends in success or one clear message."""

import copy
import fcntl
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run as command
from gptailor.plan.faults import TailorError
from gptailor.searching.folder import folder_at
from gptailor.searching.pick import Bounds, pick
from gptailor.searching.run.records import RunRecord, SearchSummary
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_files import SETTINGS, RunFiles
from gptailor.searching.run_reading import RunReading
from gptailor.searching.search_text import summary_lines
from tests.searching import landscape
from tests.searching.summary_file import document, judged, row
from tests.searching.written_run import NLL, run_of

CASES = 16
VALUES: list[Any] = [
    None, True, -1, 10**30, 10**400, 1e308, "", "\x1b[31mred\x07", "../secret.txt", "/etc/passwd",
    "sqlite:////tmp/new.db", "\u202e[bold]x", [], {}, [None], {"a": 1}, [1, 2, 3, 4, 5, 6, 7],
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a RUN with all files that are read back."""
    run = tmp_path_factory.mktemp("strange") / "run"
    run.mkdir()
    ledger = run_of(run, trials=8)
    size = {"parameters": 60, "bytes": 120, "kv_cache": 64, "layers": 6}
    of_trial = {"values": [2.25], "stderrs": [0.125], "held": None}
    place = {**size, "file": "front/trial-0003.tailor", "share": 0.1, "nats": 0.25}
    found = row(2.25, **of_trial, trial=3)
    summary = document(
        objectives=[NLL._asdict()], trials=len(ledger.trials), held=[0], base={"values": [2.0],
        "held": None}, best=found, found=found, front=[found], sizes=[{**found, **place}],
        starts=[found], verdict=judged(against=None),
        random={"trials": 1, "best": found, "expected": 2.5},
    )  # fmt: skip
    plans = {trial.plan: size for trial in ledger.trials}
    landscape.study_of(run).note("sizes", {"base": size, "plans": plans})
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "front").mkdir()
    (run / "front" / "trial-0003.tailor").write_text("# Found.\ntailor 1\n")
    (run.parent / "secret.txt").write_text("TOP SECRET\n")
    return run


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each entry of JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        yield (*at, key)
        if isinstance(entry, dict | list):
            yield from paths(entry, (*at, key))


def edited(document: Any, draw: random.Random) -> Any:
    """Return JSON with one entry that is removed, or another."""
    changed = copy.deepcopy(document)
    *before, last = draw.choice(list(paths(changed)))
    holder = changed
    for key in before:
        holder = holder[key]
    if draw.random() < 0.25:
        del holder[last]
    else:
        holder[last] = draw.choice(VALUES)
    return changed


def resumed(run: Path) -> None:
    """Read all that a search which goes on reads of RUN."""
    with folder_at(run) as folder:
        RunFiles(folder.path).record(RunRecord, SETTINGS)
        landscape.study_of(folder.path).recall(Ledger((NLL,), 64), landscape.space())


def reported(run: Path) -> None:
    """Read the rows of trials, and make the summary's words."""
    reading = RunReading(run)
    assert all(map(reading.row, reading.ledger.trials))
    if reading.summary is not None:
        words = "\n".join(summary_lines(reading.summary, 80))
        assert "\x1b" not in words
        assert "\u202e" not in words


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return all files in a folder, but for a search's lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in found}


def test_each_edit_of_its_files_ends_in_success_or_one_message(whole: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    run = tmp_path / "run"
    refused = 0
    for _ in range(CASES):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        name = draw.choice(["run", "summary", "journal", "journal"])
        file = run / ("journal.jsonl" if name == "journal" else f"{name}.json")
        lines = file.read_text().splitlines() if name == "journal" else [file.read_text()]
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(edited(json.loads(lines[number]), draw))
        file.write_text("\n".join(lines) + "\n")
        before = files_of(tmp_path)
        for read in (reported, resumed, lambda run: pick(run, Bounds(layers=9), tmp_path)):
            message = ""
            try:
                read(run)
            except TailorError as error:
                message = str(error)
            refused += bool(message)
            assert not [word for word in ("\x1b", "\u202e", "SECRET") if word in message]
        assert files_of(tmp_path) == before
    assert refused > CASES // 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s["sizes"][0].update(file="\x1b[31mred"),
        lambda s: s["sizes"][0].update(trial=-3),
        lambda s: s["sizes"][0].update(layers="6"),
        lambda s: s["sizes"][0].update(nats=None, parameters=None),
        lambda s: s.update(sizes=None),
        lambda s: s.pop("sizes"),
        lambda s: s.update(measured=None),
        lambda s: s.update(commands="rm"),
        lambda s: s["best"].update(values=[1.0, 2.0]),
        lambda s: s.update(plan="\x1b[31mred"),
    ],
)
def test_pick_and_report_refuse_a_doctored_summary(
    whole: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    summary = json.loads((run / "summary.json").read_text())
    damage(summary)
    (run / "summary.json").write_text(json.dumps(summary))
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert command(["pick", str(run), "--layers", "9"]) == 3
    said = out.getvalue()
    assert said.startswith("error[C903]: is damaged: ")
    assert "the same search command writes it anew" in said
    assert not {"Traceback", "SECRET", "\x1b"} & {word for word in ("Traceback", "SECRET", "\x1b")
                                                   if word in said}  # fmt: skip
    with pytest.raises(CheckpointError, match="C903"):
        RunReading(run)


def test_the_file_that_a_summary_names_is_not_opened(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    summary = json.loads((run / "summary.json").read_text())
    summary["sizes"][0]["file"] = "../secret.txt"
    (run / "summary.json").write_text(json.dumps(summary))
    (run.parent / "secret.txt").write_text("TOP SECRET\n")
    with pytest.raises(TailorError, match=r"trial-0003\.tailor") as caught:
        pick(run, Bounds(layers=9), tmp_path)
    assert "SECRET" not in str(caught.value)


def test_a_plan_that_leads_out_of_run_is_not_opened(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    plan = run / "front" / "trial-0003.tailor"
    plan.unlink()
    plan.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="which leads out of it") as caught:
        pick(run, Bounds(layers=9), tmp_path)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", [".lock", "front", "journal.jsonl", "run.json"])
def test_a_search_does_not_write_through_a_link_out_of_run(
    whole: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if (run / name).is_dir():
        shutil.move(run / name, tmp_path / "outside")
    else:
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "outside")
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match="which leads out of it"), folder_at(run):
        pass
    assert files_of(tmp_path) == before


def test_a_plan_with_control_characters_does_not_reach_the_terminal(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    plan = run / "front" / "trial-0003.tailor"
    plan.write_text("# \x1b]0;owned\x07\n" + landscape.BASE + "drop L1\n")
    with pytest.raises(TailorError) as caught:
        pick(run, Bounds(layers=9), tmp_path)
    assert "\x1b" not in str(caught.value)
    plan.write_bytes(b'tailor 1\nmodel base = "./\xff"\n')
    with pytest.raises(TailorError, match="is not UTF-8"):
        pick(run, Bounds(layers=9), tmp_path)


def test_a_lock_that_another_search_removes_meanwhile_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that fails before its first trial removes its lock and RUN."""
    run, real = tmp_path / "run", fcntl.flock
    first = folder_at(run).__enter__()

    def flock(lock: int, how: int) -> None:
        first.__exit__()
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CheckpointError, match="C901"), folder_at(run):
        pass
    monkeypatch.undo()
    assert not run.exists()
    with folder_at(run), pytest.raises(CheckpointError, match="C901"), folder_at(run):
        pass


def test_a_summary_comes_back_as_it_was_written(whole: Path) -> None:
    summary = RunFiles(whole).record(SearchSummary, "summary.json")
    assert summary is not None
    assert SearchSummary.model_validate_json(summary.model_dump_json()) == summary
    written = json.loads((whole / "summary.json").read_text())
    assert summary.model_dump(mode="json") == written
