"""Counts and windows by the command line: messages about them, and a search over both."""

import json
from pathlib import Path

import pytest

import gptailor
from gptailor.plan.sites import drops_by_choice
from tests.support.said import Run, in_process
from tests.support.tiny import tiny_model

SPACE = """\
tailor 1

model base = "./base"

drop any 1..2 of L0..L1
maybe drop window 2..3 of L3..L6

search {
  minimize nll("rows.jsonl")
  fidelity 4..8
  trials 12
}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows")
    tiny_model("llama", folder / "base", layers=8)
    rows = [{"text": f"a cat and {n} dogs " * (1 + n % 3)} for n in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "space.tailor").write_text(SPACE)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path) -> Run:
    """Run a command in the world's folder, in this process."""
    monkeypatch.chdir(world)
    return in_process(capsys)


def test_windows_are_checked_formatted_and_shown(run: Run) -> None:
    checked = run("check", "space.tailor")
    assert checked.code == 0, checked.err
    assert "3 choices open" in checked.out + checked.err
    assert run("fmt", "--check", "space.tailor").code == 0
    shown = run("show", "space.tailor").out
    assert "any 1..2 of L0..L1" in shown
    assert "maybe window 2..3 of L3..L6" in shown
    refused = run("compile", "space.tailor", "-o", "out")
    assert refused.code == 1
    assert "P801" in refused.err


def test_diff_shows_changed_windows(run: Run, world: Path) -> None:
    (world / "other.tailor").write_text(SPACE.replace("2..3 of", "2 of"))
    output = run("diff", "space.tailor", "other.tailor").out
    assert "only in the first: maybe drop window 2..3 of L3..L6" in output
    assert "only in the second: maybe drop window 2 of L3..L6" in output


def test_json_reads_as_the_same_plan(run: Run, world: Path, tmp_path: Path) -> None:
    as_json = tmp_path / "space.json"
    as_json.write_text(run("json", "space.tailor").out)
    document = json.loads(as_json.read_text())
    assert document["windows"] == [
        {"maybe": True, "count": {"between": [2, 3]}, "among": [3, 4, 5, 6]}
    ]
    assert gptailor.load(as_json) == gptailor.load(world / "space.tailor")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "brief_answers")
def test_a_search_chooses_windows_and_the_best_plan_compiles(run: Run, world: Path) -> None:
    result = run("search", "space.tailor", "-o", "run", "--seed", "1")
    assert result.code == 0, result.err
    too = "plans have several sizes, so parameters() is added as an objective"
    assert result.err.count(too) == 1
    best = gptailor.load(world / "run" / "best.tailor")
    assert not [*drops_by_choice(best)]
    dropped = {drop.position for drop in best.drops}
    assert dropped & {0, 1}
    window = sorted(dropped & {3, 4, 5, 6})
    assert window == [*range(window[0], window[-1] + 1)] if window else True
    assert len(window) in (0, 2, 3)
    assert dropped <= {0, 1, 3, 4, 5, 6}
    names = result.out + result.err
    journal = (world / "run" / "journal.jsonl").read_text()
    assert '"kind":"window"' in journal.replace(" ", ""), "starting plans drop windows"
    assert "nothing dropped" not in names, "one layer leaves at least"
    compiled = run("compile", "run/best.tailor", "-o", "made", "--locked")
    assert compiled.code == 0, compiled.err
    assert json.loads((world / "made" / "config.json").read_text())["num_hidden_layers"] == (
        8 - len(dropped)
    )
    again = run("search", "space.tailor", "-o", "run", "--seed", "1")
    assert again.code == 0, again.err
    assert gptailor.load(world / "run" / "best.tailor") == best
