"""Requirements of a search on the command line: sizes bound every trial, scores the result."""

from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.scores import Score
from gptailor.plan.events import Progress
from gptailor.searching.final_scores import Conditions
from gptailor.searching.run.records import front_file
from gptailor.searching.run_reading import RunReading, read_run
from gptailor.searching.search import SearchEvent
from gptailor.searching.search import search as find
from gptailor.searching.summary import held_key
from tests.end_to_end.test_search_command import Search
from tests.support.tiny import letters, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "brief_answers")]

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


def searched(search: Search, name: str, *lines: str, code: int = 0) -> tuple[str, RunReading]:
    (search.folder / f"{name}.tailor").write_text(SPACE.format("\n  ".join(lines)))
    result = search(f"{name}.tailor", "-o", name, code=code)
    return result.out + result.err, read_run(search.folder / name)


def values(run: RunReading) -> list[tuple[float | None, float | None]]:
    """Return the best or the nearest plan's value of each requirement, also on held-out samples."""
    required = run.end.required
    assert required is not None
    nearest = None if required.nearest is None else run.ledger.trials[required.nearest]
    shown = nearest if run.verdict is None else run.verdict.best
    assert shown is not None
    return [run.notes.conditions[held_key(shown)][row.measure] for row in required.rows]


def parameters(folder: Path, plan: str) -> float:
    [result] = evaluate(folder / plan, "parameters()", folder=folder).results
    assert isinstance(result.outcome, Score)
    return result.outcome.value


def test_no_plan_beyond_a_size_is_tried(search: Search, world: Path) -> None:
    wanted = "require parameters() <= 0.75 * base", f"require kv_cache() <= {4 * 64}"
    _, run = searched(search, "small", *wanted, "minimize parameters()")
    assert run.curve
    tried = {trial.values[1] for trial in run.ledger.trials if trial.values is not None}
    assert tried <= {ENDS + 3 * LAYER, ENDS + 4 * LAYER}
    assert parameters(world, "small/best.tailor") <= ENDS + 4 * LAYER
    assert run.end.required is None, "all of it was hard"
    assert run.record.requires == (
        "require parameters() <= 0.75 * base", "require kv_cache() <= 256"
    )  # fmt: skip


def test_a_bound_below_the_smallest_plan_ends_it_before_it_begins(search: Search) -> None:
    text = SPACE.format("require parameters() <= 5k")
    (search.folder / "tiny.tailor").write_text(text)
    result = search("tiny.tailor", "-o", "tiny", code=1)
    assert "error[P609]: no plan of the space has at most 5,000 parameters" in result.err
    assert f"the smallest has {ENDS + 3 * LAYER:,}, in 3 layers" in result.err
    assert not (search.folder / "tiny").exists()


def test_the_best_plan_meets_the_required_scores(search: Search, world: Path) -> None:
    line = 'require nll("code.txt") <= 1.05 * base'
    out, run = searched(search, "kept", line, "require latency() <= 60.0")
    required = run.end.required
    assert required is not None
    assert required.met
    assert required.nearest is None
    [(score, held), (latency, _)] = values(run)
    assert required.rows[0].require == line
    assert score is not None
    assert required.rows[0].bound is not None
    assert score <= required.rows[0].bound
    assert held is not None
    assert latency is not None
    assert 0 < latency < 60
    assert f"- {line} (" in out
    assert "evaluated plans meet the requirements" in out
    assert (world / "kept" / "best.tailor").exists()
    journal = (world / "kept" / "journal.jsonl").read_text()
    again = search("kept.tailor", "-o", "kept")
    assert "evaluating the requirements" not in again.err, "each plan is evaluated once"
    assert (world / "kept" / "journal.jsonl").read_text().count("conditions") == journal.count(
        "conditions"
    )


def test_the_nearest_plan_is_reported_if_none_meets_the_requirement(
    search: Search, world: Path
) -> None:
    out, run = searched(search, "none", 'require nll("code.txt") <= 0.5 * math', code=1)
    assert not (world / "none" / "best.tailor").exists()
    assert not (world / "none" / "best.tailor.lock").exists()
    required = run.end.required
    assert required is not None
    assert not required.met
    assert required.nearest is not None
    nearest = front_file(required.nearest)
    assert (world / "none" / nearest).exists()
    assert "no plan meets the requirements, so there is no best plan" in out
    assert f"the nearest is {nearest}" in " ".join(out.split())
    [(value, _)], [row] = values(run), required.rows
    assert value is not None
    assert row.bound is not None
    assert value > row.bound
    assert len(gptailor.load(world / "none" / nearest).drops) in {1, 2, 3}
    assert run.verdict is None
    assert run.ledger.trials


def test_latency_is_an_objective_that_the_study_remembers(search: Search, world: Path) -> None:
    _, run = searched(search, "quick", "minimize latency()")
    by_layers: dict[int, set[float]] = {}
    for trial in run.ledger.trials:
        if trial.values is not None:
            by_layers.setdefault(run.layers(trial), set()).add(trial.values[1])
    assert all(len(times) == 1 for times in by_layers.values())
    assert "latencies" in (world / "quick" / "journal.jsonl").read_text()


def test_a_search_by_size_alone_is_refused(search: Search) -> None:
    (search.folder / "open.tailor").write_text(SPACE.format(""))
    result = search("open.tailor", "-o", "refused", "-O", "parameters()", code=1)
    assert "no objective measures quality" in result.err


def test_a_text_that_is_required_is_read_before_the_first_trial(search: Search) -> None:
    (search.folder / "lost.tailor").write_text(SPACE.format('require nll("gone.txt") <= base'))
    result = search("lost.tailor", "-o", "lost", code=1)
    assert "error[C801]: can't be read: No such file or directory" in result.err
    assert "gone.txt" in result.err
    assert "trial 0" not in result.err


def test_an_evaluation_is_reused_for_its_own_text_alone(search: Search, world: Path) -> None:
    """The requirement is edited, then another one comes in, then its text is another."""
    (world / "other.txt").write_text(letters(16_000, 2))
    one, two = 'require nll("code.txt") <= 2.0 * base', 'require nll("other.txt") <= 2.0 * base'

    def rows(*lines: str) -> tuple[str, list[Any]]:
        out, run = searched(search, "edited", *lines)
        assert run.end.required is not None
        bounds = [(row.bound, row.held_bound) for row in run.end.required.rows]
        return out, list(zip(bounds, values(run), strict=True))

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


def test_an_interrupt_before_requirements_are_evaluated_keeps_the_best_plan(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plan meets the requirement; the nearest plan has a file, though no front has it."""
    line = 'require nll("text.txt") <= 0.5 * math'
    plan = gptailor.loads(SPACE.format(line), folder=world)

    def stop(event: SearchEvent) -> None:
        if isinstance(event, Progress) and event.at.startswith("evaluating"):
            raise KeyboardInterrupt

    result = find(plan, world / "stopped", on_event=stop)
    assert result.ended == "interrupted"
    assert result.best == world / "stopped" / "best.tailor"
    assert result.best.exists()
    assert result.summary.end.required is not None
    assert result.summary.end.required.evaluated == 0
    summary = (world / "stopped" / "summary.md").read_text()
    assert "are not evaluated on all plans yet" in summary
    assert "meets the requirements" not in summary

    def worst_is_nearest(_: Conditions, told: Any, bounds: object) -> float:
        return 1 / (told[0][0] or 1.0)

    monkeypatch.setattr(Conditions, "_excess", worst_is_nearest)
    result = find(plan, world / "stopped")
    assert result.best is None
    assert not (world / "stopped" / "best.tailor").exists()
    assert result.summary.end.required is not None
    nearest = result.summary.end.required.nearest
    assert nearest is not None
    handed = {trial.number for trial in result.summary.front}
    assert nearest not in handed | {point.trial for point in result.summary.curve}
    assert (world / "stopped" / front_file(nearest)).exists()


def test_texts_are_split_as_a_search_of_each_splits_them(search: Search, world: Path) -> None:
    """Held-out samples aren't read, and a shorter text takes no sample of another one."""
    (world / "short.txt").write_text(letters(4_000, 4))
    code = 'require nll("code.txt") <= 2.0 * base'
    lines = 'require nll("text.txt") <= 2.0 * base', 'require nll("short.txt") <= 2.0 * base'
    _, run = searched(search, "split", code, *lines)
    beside, (seen, held), _ = values(run)
    assert run.verdict is not None
    unseen = run.held_scores(run.verdict.best)
    assert unseen is not None
    assert (seen,) == pytest.approx(run.verdict.best.values, rel=1e-6)
    assert (held,) == pytest.approx(unseen.values, rel=1e-6)
    _, run = searched(search, "alone", code)
    assert values(run) == [beside]


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
