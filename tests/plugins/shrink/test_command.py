"""`gptailor shrink` on tiny models: what it prints and writes, and bad input."""

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli import main as cli
from gptailor.plan.faults import errors
from gptailor.plugins.shrink import comparison, llama_speed, losses
from gptailor.plugins.shrink.texts import OWN_TEXT
from tests.support.kitchen import files_and_commands
from tests.support.said import Run, in_process
from tests.support.tiny import tiny_model
from tests.support.vocabularies import write_byte_level

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "shrink.md"
BRIEF = comparison.Effort(3, 2, 6000, whole=1, cut=1, built=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shrink")
    shape = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 400, "layers": 4,
             "max_position_embeddings": 1100}  # fmt: skip
    for seed, name in enumerate(("base", "math")):
        write_byte_level(tiny_model("llama", folder / name, seed=seed, **shape))
    return folder


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path
) -> Run:
    """Run `gptailor shrink` in an empty folder next to the models, with little to measure."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "math"):
        (tmp_path / name).symlink_to(world / name)
    for name in comparison.EFFORTS:
        monkeypatch.setitem(comparison.EFFORTS, name, BRIEF)
    monkeypatch.setattr(losses, "llama_speeds", lambda files, threads: None)
    return partial(in_process(capsys), "shrink")


def test_the_plan_and_the_space_are_valid_and_the_model_meets_the_goal(
    run: Run, tmp_path: Path
) -> None:
    outcome = run("base", "--to", "85kB", "-o", "small.gguf")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "small.gguf").stat().st_size <= 85_000
    assert "note: measured on a small English text of gptailor's own" in outcome.out
    assert "choice: " in outcome.out
    assert max(map(len, outcome.out.splitlines()[:12])) <= 80
    plan = gptailor.load("base-shrunk.tailor")
    for file in ("base-shrunk.tailor", "base-shrunk-space.tailor"):
        assert not errors(gptailor.check(file)), file
        assert gptailor.format(Path(file).read_text()) == Path(file).read_text()
    assert plan.gguf
    assert {expected.name for expected in plan.expects} == {"bytes", "nll"}
    results = gptailor.evaluate_expectations("base-shrunk.tailor", samples=4)
    assert all(result.passed for result in results)
    assert gptailor.load("base-shrunk-space.tailor").search is not None


def test_cuts_are_not_measured_if_fewer_bits_lose_very_little(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(comparison.EFFORTS, "quick", replace(BRIEF, settled=1.0))
    monkeypatch.setattr(losses.Losses, "distances", lambda *_: pytest.fail("measured"))
    outcome = run("base", "--to", "85kB", "--quick", "--json")
    result = json.loads(outcome.out)
    assert result["rows"][result["chosen"]]["way"] == "whole"
    assert {row["way"]: row["loss"] for row in result["rows"]}.get("layers", 0) is None
    assert any("cuts are not measured" in note for note in result["notes"])


def test_finished_measurements_are_used_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("base", "--parameters", "45k", "--json")
    monkeypatch.setattr(losses.Losses, "_measured", lambda *_: pytest.fail("measured again"))
    again = run("base", "--parameters", "45k", "--json", "--force")
    rows = [json.loads(result.out)["rows"] for result in (first, again)]
    for row in (*rows[0], *rows[1]):
        row["decoding"] = row["llama"] = None
    assert rows[0] == rows[1]
    assert {row["type"] for row in rows[0] if row["way"] != "whole"} == {None}
    assert all(row["parameters"] <= 45_000 for row in rows[0] if row["met"])


def test_several_models_share_the_recipe_that_loses_least(run: Run) -> None:
    result = run("base", "math", "--parameters", "45k")
    assert result.code == 0, result.err
    assert "note: all plans start from '" in result.out
    assert " whole from base, model2 by linear(): " in result.err


def test_a_faster_plan_is_measured(run: Run) -> None:
    result = run("base", "--faster", "1.01", "--json")
    rows = json.loads(result.out)["rows"]
    assert any(row["decoding"] for row in rows)
    assert "whole" in {row["way"] for row in rows}


@pytest.mark.pages
def test_the_commands_of_the_page_work(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses.Losses, "speed_ratios", lambda *given: [1.5] * len(given[3]))
    (tmp_path / "models").mkdir()
    (tmp_path / "base").rename(tmp_path / "models" / "base")
    (tmp_path / "mine.jsonl").write_bytes(OWN_TEXT.read_bytes())
    smaller = {"100MB": "85kB", "1.25": "1.01"}
    ran = [
        [smaller.get(word, word) for word in shlex.split(command)[1:]]
        for _, _, commands in files_and_commands(PAGE.read_text("utf-8"))
        for command in commands
    ]
    for command in ran:
        trials = ["--trials", "4"] if command[0] == "search" else []
        code = cli.run([*command, *trials])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    assert {command[0] for command in ran} == {"shrink", "compile", "test", "search"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name a goal, such as --to 100MB or --faster 1.25"),
        (("--to", "1GB"), 0, "the model already meets the goal of at most 1.0 GB"),
        (("--to", "lots"), 2, "expected a size such as 5GB"),
        (("--to", "85kB", "--text", "none.jsonl"), 3, "none.jsonl"),
        (("--to", "85kB", "--text", "short.txt"), 3, "C806"),
        (("--to", "85kB", "--plan", "no/folder/p.tailor"), 3, "there is no such folder"),
        (("--to", "85kB", "--plan", "short.txt"), 3, "exists already"),
    ],
)
def test_bad_input_has_one_message(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "short.txt").write_text("Too little text. " * 9)
    before = sorted(tmp_path.iterdir())
    result = run("base", *arguments)
    assert (result.code, words in result.out + result.err) == (code, True), result
    assert sorted(tmp_path.iterdir()) == before


def test_the_size_of_a_gguf_file_is_its_own(run: Run, world: Path) -> None:
    plan = gptailor.loads(f'tailor 1\nmodel base = "{world}/base"')
    size = gptailor.compile(plan, "small.gguf", quantize="q8_0").size
    result = run("small.gguf", "--to", f"{size}")
    assert (result.code, "already meets the goal" in result.out) == (0, True), result


def test_an_impossible_goal_is_reported_before_measuring(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses.Losses, "_measured", lambda *_: pytest.fail("measured"))
    result = run("base", "--to", "1kB")
    assert result.code == 1
    assert "nothing meets the goal of at most 1.0 kB; the nearest is " in result.out
    assert not [*tmp_path.glob("*shrunk*")]


def test_a_goal_that_no_measured_plan_meets_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.plugins.shrink.shrink._Shrinking._misses", lambda *_: None)
    result = run("base", "--to", "1kB")
    assert (result.code, "nothing meets the goal of at most 1.0 kB" in result.out) == (1, True)
    assert not [*tmp_path.glob("*shrunk*")]


def test_an_interrupted_command_writes_nothing_and_continues(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, made = losses.Losses._measured, []

    def until_ctrl_c(self: losses.Losses, *arguments: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments)
        return measured(self, *arguments)

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(losses.Losses, "_measured", until_ctrl_c)
        assert run("base", "--parameters", "45k").code == 130
    assert sorted(tmp_path.iterdir()) == before
    later = []
    with monkeypatch.context() as patch:
        patch.setattr(
            losses.Losses, "_measured", lambda self, *a: later.append(a) or measured(self, *a)
        )
        assert run("base", "--parameters", "45k").code == 0
    assert not [each for each in later if (each[1], each[2]) in {(a[1], a[2]) for a in made}]


def test_a_full_disk_is_reported_and_leaves_no_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(plan: object, file: Path, **options: object) -> None:
        raise CheckpointError("C303", "can't be written: no space left on the device", file)

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(losses, "compile_to", full)
    result = run("base", "--to", "85kB")
    assert (result.code, "no space left on the device" in result.err) == (3, True), result
    assert sorted(tmp_path.iterdir()) == before


def test_speeds_that_fail_are_a_note(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no server\nat all")

    monkeypatch.setattr(losses.Losses, "llama_ratios", fails)
    result = run("base", "--faster", "1.01")
    assert (result.code, "note: speeds can't be measured: no server" in result.out) == (0, True), (
        result
    )
    assert max(map(len, result.out.splitlines())) <= 80


def test_shrink_without_torch_prints_sizes_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptailor.plugins.shrink.shrink.installed", lambda extra: False)
    result = run("base", "--to", "85kB")
    assert result.code == 3
    assert "no choice: losses need torch: pip install 'gptailor[torch]'" in result.out
    assert "the whole model" in result.out


def test_the_text_that_gptailor_brings_is_large_enough() -> None:
    rows = [json.loads(line)["text"] for line in OWN_TEXT.read_text().splitlines()]
    assert sum(map(len, rows)) > 60_000
    assert all(rows)


@pytest.mark.llamacpp
def test_llama_cpp_runs_files_by_turns(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    plan = gptailor.loads(f'tailor 1\nmodel base = "{world}/base"')
    gptailor.compile(plan, tmp_path / "a.gguf")
    result = llama_speed.llama_speeds([tmp_path / "a.gguf"], 1)
    assert result is not None
    assert all(speed > 0 for speed in result[0])
    assert llama_speed.llama_speeds([tmp_path / "none.gguf"], 1) is None
