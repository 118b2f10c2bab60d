"""Requirements of a search on the command line: sizes bound every trial, scores the result."""

import json
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.scores import Score
from gptailor.plan.events import Progress
from gptailor.searching.final_scores import Conditions
from gptailor.searching.search import SearchEvent
from gptailor.searching.search import search as find
from tests.end_to_end.test_search_command import Search
from tests.support.tiny import letters, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SPACE = """\
tailor 1
model base = "./base"
model math = "./math"
drop any 1..3 of L0..L5
L0..L5 from any of base, math by task_arithmetic(0.0..1.0)
search {{
  minimize nll("text.txt")
  {}
  trials 8
  fidelity 4..12
}}
"""
ENDS, LAYER = 2064, 1952


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("required")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed)
    for seed, name in enumerate(("text.txt", "code.txt")):
        (folder / name).write_text(letters(16_000, seed))
    return folder


@pytest.fixture(scope="module")
def search(request: pytest.FixtureRequest, world: Path) -> Search:
    return Search(request, world)


def searched(search: Search, name: str, *lines: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    (search.folder / f"{name}.tailor").write_text(SPACE.format("\n  ".join(lines)))
    said = search(f"{name}.tailor", "-o", name, code=code)
    summary = json.loads((search.folder / name / "summary.json").read_text())
    return said.out + said.err, summary


def parameters(folder: Path, plan: str) -> float:
    [result] = evaluate(folder / plan, "parameters()", folder=folder).results
    assert isinstance(result.outcome, Score)
    return result.outcome.value


def test_no_plan_beyond_a_size_is_tried(search: Search, world: Path) -> None:
    wanted = "require parameters() <= 0.75 * base", f"require kv_cache() <= {4 * 64}"
    _, summary = searched(search, "small", *wanted, "minimize parameters()")
    assert [one["parameters"] for one in summary["sizes"]]
    tried = [row for row in summary["starts"] + summary["front"] if row["values"] is not None]
    assert {row["values"][1] for row in tried} <= {ENDS + 3 * LAYER, ENDS + 4 * LAYER}
    assert parameters(world, "small/best.tailor") <= ENDS + 4 * LAYER
    assert summary["required"] is None, "all of it was hard"
    assert summary["requires"] == [
        "require parameters() <= 0.75 * base", "require kv_cache() <= 256"
    ]  # fmt: skip


def test_a_bound_below_the_smallest_plan_ends_it_before_it_begins(search: Search) -> None:
    text = SPACE.format("require parameters() <= 5k")
    (search.folder / "tiny.tailor").write_text(text)
    said = search("tiny.tailor", "-o", "tiny", code=1)
    assert "error[P609]: no plan of the space has at most 5,000 parameters" in said.err
    assert f"the smallest has {ENDS + 3 * LAYER:,}, in 3 layers" in said.err
    assert not (search.folder / "tiny").exists()


def test_the_best_plan_meets_what_is_required_of_scores(search: Search, world: Path) -> None:
    line = 'require nll("code.txt") <= 1.05 * base'
    out, summary = searched(search, "kept", line, "require latency() <= 60.0")
    required = summary["required"]
    assert required["met"] >= 1
    assert required["nearest"] is None
    [score, latency] = required["rows"]
    assert score["require"] == line
    assert score["value"] <= score["bound"]
    assert score["held"] is not None
    assert 0 < latency["value"] < 60
    assert f"- {line} (" in out
    assert "evaluated plans meet the requirements" in out
    assert (world / "kept" / "best.tailor").exists()
    journal = (world / "kept" / "journal.jsonl").read_text()
    again = search("kept.tailor", "-o", "kept")
    assert "evaluating the requirements" not in again.err, "each plan is evaluated once"
    assert (world / "kept" / "journal.jsonl").read_text().count("conditions") == journal.count(
        "conditions"
    )


def test_where_nothing_meets_it_the_nearest_is_said(search: Search, world: Path) -> None:
    out, summary = searched(search, "none", 'require nll("code.txt") <= 0.5 * math', code=1)
    assert not (world / "none" / "best.tailor").exists()
    assert not (world / "none" / "best.tailor.lock").exists()
    required = summary["required"]
    assert required["met"] == 0
    assert (world / "none" / required["nearest"]).exists()
    assert "no plan meets what is required, so that there is no best one" in out
    assert f"the nearest is {required['nearest']}" in " ".join(out.split())
    [row] = required["rows"]
    assert row["value"] > row["bound"]
    nearest = gptailor.load(world / "none" / required["nearest"])
    assert len(nearest.drops) in {1, 2, 3}
    assert summary["best"] is None
    assert summary["trials"] > 0


def test_latency_is_an_objective_that_the_study_remembers(search: Search, world: Path) -> None:
    _, summary = searched(search, "quick", "minimize latency()")
    by_layers: dict[int, set[float]] = {}
    for row in summary["sizes"]:
        by_layers.setdefault(row["layers"], set()).add(row["values"][1])
    assert all(len(times) == 1 for times in by_layers.values())
    assert "latencies" in (world / "quick" / "journal.jsonl").read_text()


def test_nothing_is_searched_by_sizes_alone(search: Search) -> None:
    (search.folder / "open.tailor").write_text(SPACE.format(""))
    said = search("open.tailor", "-o", "refused", "-O", "parameters()", code=1)
    assert "no objective measures quality" in said.err


def test_a_text_that_is_required_is_read_before_the_first_trial(search: Search) -> None:
    (search.folder / "lost.tailor").write_text(SPACE.format('require nll("gone.txt") <= base'))
    said = search("lost.tailor", "-o", "lost", code=1)
    assert "error[C801]: can't be read: No such file or directory" in said.err
    assert "gone.txt" in said.err
    assert "trial 0" not in said.err


def test_an_evaluation_counts_for_its_text_alone(search: Search, world: Path) -> None:
    """The requirement is edited, then another one comes in, then its text is another."""
    (world / "other.txt").write_text(letters(16_000, 2))
    one, two = 'require nll("code.txt") <= 2.0 * base', 'require nll("other.txt") <= 2.0 * base'

    def rows(*lines: str) -> tuple[str, list[Any]]:
        out, summary = searched(search, "edited", *lines)
        return out, [list(row.values())[1:] for row in summary["required"]["rows"]]

    _, [code] = rows(one)
    _, [other] = rows(two)
    assert other != code
    out, both = rows(one, two)
    assert both == [code, other]
    assert "evaluating the requirements" not in out, "looser bounds need no evaluation"
    (world / "other.txt").write_text(letters(16_000, 3))
    out, [same, edited] = rows(one, two)
    assert same == code
    assert edited != other
    assert "evaluating the requirements" in out


def test_an_interrupt_before_requirements_are_evaluated_leaves_the_best_one(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated in the end, none meets it; the nearest has a file, though no front has it."""
    line = 'require nll("text.txt") <= 0.5 * math'
    plan = gptailor.loads(SPACE.format(line), folder=world)

    def stop(event: SearchEvent) -> None:
        if isinstance(event, Progress) and event.at.startswith("evaluating"):
            raise KeyboardInterrupt

    found = find(plan, world / "stopped", on_event=stop)
    assert found.ended == "interrupted"
    assert found.best == world / "stopped" / "best.tailor"
    assert found.best.exists()
    assert found.summary.required.evaluated == 0
    said = (world / "stopped" / "summary.md").read_text()
    assert "are not evaluated on all plans yet" in said
    assert "meets what is required" not in said

    def worst_is_nearest(_: Conditions, told: Any, bounds: object) -> float:
        return 1 / (told[0][0] or 1.0)

    monkeypatch.setattr(Conditions, "_excess", worst_is_nearest)
    found = find(plan, world / "stopped")
    assert found.best is None
    assert not (world / "stopped" / "best.tailor").exists()
    nearest = found.summary.required.nearest
    front = {f"front/trial-{row.trial:04}.tailor" for row in found.summary.front}
    assert nearest not in front | {row.file for row in found.summary.sizes}
    assert (world / "stopped" / nearest).exists()


def test_texts_are_split_as_a_search_of_each_splits_them(search: Search, world: Path) -> None:
    """Held-out samples aren't read, and a shorter text takes no sample of another one."""
    (world / "short.txt").write_text(letters(4_000, 4))
    code = 'require nll("code.txt") <= 2.0 * base'
    lines = 'require nll("text.txt") <= 2.0 * base', 'require nll("short.txt") <= 2.0 * base'
    _, summary = searched(search, "split", code, *lines)
    beside, text, _ = summary["required"]["rows"]
    assert text["value"] == pytest.approx(summary["best"]["values"][0], rel=1e-6)
    assert text["held"] == pytest.approx(summary["best"]["held"]["values"][0], rel=1e-6)
    _, summary = searched(search, "alone", code)
    assert summary["required"]["rows"] == [beside]


def test_a_found_plan_keeps_the_expectations(search: Search, world: Path) -> None:
    """A model that only they name is declared still; other expectations continue a search."""
    space = SPACE.format("").replace("model math", 'model code = "./math"\nmodel math')
    (world / "expect.tailor").write_text(f'{space}expect nll("code.txt") <= 9 * code\n')
    search("expect.tailor", "-o", "expecting")
    best = gptailor.load(world / "expecting" / "best.tailor")
    assert [(e.name, e.arguments, e.bound.of) for e in best.expects] == [
        ("nll", {"file": "../code.txt"}, "code")
    ]
    assert [result.passed for result in gptailor.evaluate_expectations(best)] == [True]
    journal = (world / "expecting" / "journal.jsonl").read_bytes()
    (world / "expect.tailor").write_text(f"{space}expect parameters() < base\n")
    search("expect.tailor", "-o", "expecting")
    assert (world / "expecting" / "journal.jsonl").read_bytes() == journal
    assert "expect parameters() < base" in (world / "expecting" / "best.tailor").read_text()
