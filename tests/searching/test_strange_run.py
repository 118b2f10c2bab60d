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
from gptailor.evaluation.scores import PerSample
from gptailor.plan.faults import TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.searching.folder import folder_at
from gptailor.searching.pick import Bounds, pick
from gptailor.searching.run.records import (
    CurvePoint,
    HandedNote,
    RequiredNote,
    ResultNote,
    RunSizes,
)
from gptailor.searching.run.scores import per_sample_to_json
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_files import RunFiles
from gptailor.searching.run_reading import read_run
from gptailor.searching.search_text import headline, summary_lines
from tests.searching import landscape
from tests.searching.written_run import NLL, ended, run_of

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
    size = OutputSize(60, 120, 64, 6)
    point = CurvePoint(trial=3, size=size, lost=0.25, share=0.1, nats=0.25)
    study = landscape.study_of(run)
    study.note("sizes", RunSizes(base=size, plans={trial.plan: size for trial in ledger.trials}))
    required = RequiredNote(evaluated=1, whole=False, met=(), nearest=3, rows=())
    end = {"left_out": ("greedy removal",), "beyond": (), "required": required}
    study.note("result", ResultNote(ended="budget", held=(0,), **end))
    study.note("handed", HandedNote(best=3, curve=(point,)))
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
        RunFiles(folder.path).record()
        landscape.study_of(folder.path).recall(Ledger((NLL,), 64), landscape.space())


def reported(run: Path) -> None:
    """Read the rows of trials, and make the summary's words."""
    reading = read_run(run)
    assert all(map(reading.row, reading.ledger.trials))
    if reading.notes.result is not None:
        words = "\n".join(summary_lines(reading, 80))
        assert "\x1b" not in words
        assert "\u202e" not in words


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return all files in a folder, but for a search's lock."""
    result = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in result}


def test_each_edit_of_its_files_ends_in_success_or_one_message(whole: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    run = tmp_path / "run"
    refused = 0
    for _ in range(CASES):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        name = draw.choice(["run", "journal", "journal"])
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
        lambda s: s["curve"][0].update(trial=-3),
        lambda s: s["curve"][0].update(trial="../secret.txt"),
        lambda s: s["curve"][0]["size"].update(layers="6"),
        lambda s: s["curve"][0].update(nats=None, lost=None),
        lambda s: s.update(curve=None),
        lambda s: s.pop("curve"),
        lambda s: s.update(best="\x1b[31mred"),
    ],
)
def test_pick_and_report_refuse_doctored_notes(
    whole: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    *lines, last = (run / "journal.jsonl").read_text().splitlines()
    note = json.loads(last)
    damage(note["handed"])
    (run / "journal.jsonl").write_text("\n".join([*lines, json.dumps(note)]) + "\n")
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert command(["pick", str(run), "--layers", "9"]) == 3
    output = out.getvalue()
    assert output.startswith(f"error[C903]: line {len(lines) + 1} of the journal is damaged: ")
    assert "run the same search command to continue" in output
    assert not {"Traceback", "SECRET", "\x1b"} & {word for word in ("Traceback", "SECRET", "\x1b")
                                                   if word in output}  # fmt: skip
    with pytest.raises(CheckpointError, match="C903"):
        read_run(run)


def with_samples(run: Path, *sums: float) -> None:
    """Write a RUN that has ended, with samples of e to these sums, less by 1 from plan to plan."""
    ended(run, run_of(run, trials=8))
    notes = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    held = [scores for note in notes for scores in note.get("held_out", {}).values()]
    for less, scores in enumerate([*held, *(note["trial"] for note in notes if "trial" in note)]):
        each = PerSample(tuple(n - less for n in sums), (1,) * len(sums), exponential=True)
        scores["per_sample"] = per_sample_to_json((each,))
    (run / "journal.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))


def test_a_verdict_by_huge_samples_isnt_a_traceback(tmp_path: Path) -> None:
    with_samples(tmp_path, 700.0, 700.5, 699.0)
    assert "nats lost" in headline(read_run(tmp_path))


def test_samples_without_a_finite_score_are_refused(tmp_path: Path) -> None:
    with_samples(tmp_path, 800.0, 700.5, 799.0)
    with pytest.raises(CheckpointError, match="without a finite score") as caught:
        read_run(tmp_path)
    assert caught.value.code == "C903"


def test_a_plan_that_leads_out_of_run_is_not_opened(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (tmp_path / "secret.txt").write_text("TOP SECRET\n")
    plan = run / "front" / "trial-0003.tailor"
    plan.unlink()
    plan.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="a link out of the folder") as caught:
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
    with pytest.raises(CheckpointError, match="a link out of the folder"), folder_at(run):
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
    with pytest.raises(TailorError, match="not UTF-8: invalid byte"):
        pick(run, Bounds(layers=9), tmp_path)


def test_a_lock_that_another_search_removes_is_taken_again(
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
