"""A search of repaired cuts: the recipe first, with nothing dropped, then its cuts, then rivals."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.scores import Outcome, Race, Score
from gptailor.plan.plan import Merge, Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import (
    PlanLayers,
    RivalPlan,
    SearchedRecipe,
    of_best_recipe,
    origin_words,
)
from gptailor.searching.run.trials import FINAL, RECIPES, SEARCH, STARTS, Trial
from gptailor.searching.space.decode import decode
from gptailor.searching.space.space import space_of
from gptailor.searching.starts.recipes import Recipes
from gptailor.searching.starts.stages import Starts
from gptailor.searching.strategies import strategy_of
from gptailor.searching.summary import repair_worth
from tests.searching.landscape import SearchSetting, number, record, search, setting

TEXT = """\
tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
drop any 3 of L0..L11
let m = 0.0..1.0
let c = 0.0..1.0
whole from math, code by task_arithmetic(weight=(m, c))
heal on "text.txt"
"""
LAYERS = 12
BEST = (0.7, 0.3)
"""The coefficients with the least loss uncut: no uniform merge has them."""
BUDGET = Budget(60, 16, 64, heals=True, separate=True)


class Repairing:
    """An evaluator with bare cuts that hide recipes: they differ by chance; healing reduces it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Plan, Stage]] = []

    def __call__(
        self, plans: Sequence[Plan], samples: int, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        for index, plan in enumerate(plans):
            self.asked.append((plan, stage))
            yield index, (Score(self.loss(plan, stage), 0.01, samples),)

    @staticmethod
    def loss(plan: Plan, stage: Stage) -> float:
        uncut = 2.0
        if plan.whole is not None and isinstance(plan.whole.recipe, Merge):
            m, c = (float(plan.numbers[name]) for name in ("m", "c"))  # type: ignore[arg-type]
            uncut = 1.4 + 2 * (m - BEST[0]) ** 2 + 2 * (c - BEST[1]) ** 2
        cut = sum(0.1 + (drop.position - 6) ** 2 / 30 for drop in plan.drops)
        chance = 1.0 * number(plan, "chance") if plan.drops else 0.0
        return (
            uncut
            + {"uncut": 0, "bare": 1, "bridged": 0.5, "healed": 0.2}[stage] * cut
            + (chance if stage == "bare" else 0.0)
        )


def repaired(**changes: Any) -> SearchSetting:
    space = space_of(gptailor.loads(TEXT), LAYERS)
    strategy = strategy_of("surrogate")
    budget = changes.pop("budget", BUDGET)
    recipes = Recipes(space, strategy, budget.recipes, budget.asked_recipes, budget.rivals, seed=5)
    influence = {"base": [1.0 + abs(at - 6) for at in range(LAYERS)]}
    starts = Starts(space, influence, (), 0.25, budget.starts, recipes=recipes)
    return setting(space=space, strategy=strategy, starts=starts, budget=budget, **changes)


def numbers(of: SearchSetting, trial: Trial, *, cut: bool = True) -> tuple[float, ...]:
    plan = decode(of.space, trial.request.genome, cut=cut)
    return tuple(float(plan.numbers[name]) for name in ("m", "c"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    evaluator = Repairing()
    result = search(tmp_path_factory.mktemp("run"), repaired(), evaluator)
    assert result.run() in ("budget", "exhausted")
    return result, evaluator


def test_recipes_come_first_and_nothing_of_them_is_dropped(done: Any) -> None:
    result, evaluator = done
    phases = [trial.request.phase for trial in result.ledger.trials]
    assert phases[: phases.count(RECIPES)] == [RECIPES] * phases.count(RECIPES)
    uncut = [plan for plan, stage in evaluator.asked if stage == "uncut"]
    assert len(uncut) > 8
    assert not any(plan.drops for plan in uncut)
    words = {trial.request.origin.kind for trial in result.ledger.of(RECIPES)}
    assert words == {"layers", "strategy"}


def test_cuts_are_searched_with_the_best_recipe_alone(done: Any) -> None:
    result, _ = done
    of, ledger = result.setting, result.ledger
    uncut = [trial for trial in ledger.of(RECIPES) if trial.full]
    best = min(uncut, key=lambda trial: trial.values[0])
    recipe = numbers(of, best, cut=False)
    assert best.request.origin.kind == "strategy", "no composition is the best"
    searched = ledger.of(SEARCH)
    assert len(searched) > 8
    assert {numbers(of, trial) for trial in searched} == {recipe}
    starts = [trial for trial in ledger.of(STARTS) if of_best_recipe(trial.request.origin)]
    assert {numbers(of, trial) for trial in starts} == {recipe}
    assert any(isinstance(trial.request.origin.of, SearchedRecipe) for trial in starts)
    assert len({trial.plan for trial in searched}) > 8


def test_rivals_are_repaired_and_do_not_beat_the_found_plan(done: Any) -> None:
    result, _ = done
    ledger = result.ledger
    rivals = [t for t in ledger.of(STARTS) if isinstance(t.request.origin, RivalPlan)]
    assert {(t.request.origin.of.kind, t.request.origin.cut) for t in rivals} == {
        (kind, cut) for kind in ("merge", "model") for cut in ("best window", "block influence")
    }
    healed = {trial.plan: trial for trial in ledger.of(FINAL)}
    assert {trial.request.stage for trial in healed.values()} == {"healed"}
    assert {trial.plan for trial in rivals} <= healed.keys()
    best = ledger.best()
    assert best.request.phase == FINAL
    assert all(best.values[0] <= trial.values[0] for trial in healed.values())
    assert best.plan not in {trial.plan for trial in rivals}, "the search wins here"
    assert ledger.cost() <= BUDGET.trials + 1


def test_the_summary_compares_losses_before_and_after_repair(done: Any) -> None:
    result, _ = done
    ledger = result.ledger
    pairs = [(ledger.before(trial), trial) for trial in ledger.of(FINAL)]
    both = [(a.values[0], b.values[0]) for a, b in pairs if a is not None]
    before, after = zip(*both, strict=True)
    worth = repair_worth(ledger)
    assert worth is not None
    assert worth.plans == len(both) >= 3
    assert worth.slope == pytest.approx(np.polyfit(before, after, 1)[0], abs=2e-3)
    ranks = [np.argsort(np.argsort(each)) for each in (before, after)]
    assert worth.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=2e-3)


@pytest.mark.parametrize("at", [3, 12, 25, 40, 52])
def test_an_interrupted_search_resumes(tmp_path: Path, done: Any, at: int) -> None:
    whole, _ = done
    first = search(tmp_path, repaired(), Repairing())
    for _ in first.steps():
        if len(first.ledger.trials) >= at:
            break
    again = search(tmp_path, repaired(), Repairing())
    again.run()
    assert record(again.ledger.trials) == record(whole.ledger.trials)


def test_more_trials_keep_the_best_recipe(tmp_path: Path, done: Any) -> None:
    whole, _ = done
    search(tmp_path, repaired(), Repairing()).run()
    more = search(tmp_path, repaired(budget=replace(BUDGET, trials=90)), Repairing())
    more.run()
    many = len(whole.ledger.trials)
    assert record(more.ledger.trials[:many]) == record(whole.ledger.trials)
    best = min(
        (trial for trial in more.ledger.of(RECIPES) if trial.full), key=lambda t: t.values[0]
    )
    later = [t for t in more.ledger.trials[many:] if t.request.phase == SEARCH]
    assert len(later) > 8
    recipe = numbers(more.setting, best, cut=False)
    assert {numbers(more.setting, trial) for trial in later} == {recipe}


def test_the_unrepaired_score_prefers_another_recipe(tmp_path: Path, done: Any) -> None:
    whole, _ = done
    together = replace(BUDGET, separate=False)
    of = repaired(budget=together)
    of = replace(of, starts=replace(of.starts, recipes=None))  # type: ignore[type-var]
    mixed = search(tmp_path, of, Repairing())
    mixed.run()
    assert whole.ledger.best().values[0] < mixed.ledger.best().values[0]


def test_few_trials_compare_the_most_promising_recipes_on_few_samples(tmp_path: Path) -> None:
    chosen = repaired(budget=Budget(7, 16, 64, heals=True, separate=True))
    result = search(tmp_path, chosen, Repairing())
    assert result.run() == "budget"
    ledger = result.ledger
    origins = [trial.request.origin for trial in ledger.of(RECIPES)]
    assert all(isinstance(origin, PlanLayers) and origin.of for origin in origins)
    compared = [
        (origin_words(origin), trial.share)
        for origin, trial in zip(origins, ledger.of(RECIPES), strict=True)
    ]
    assert compared == [
        ("uniform merge", 0.25),
        ("math", 0.25),
        ("code", 0.25),
        ("uniform merge", 1.0),
    ]
    named = "base, uniform merge by 1, uniform merge by 0.6, uniform merge by 0.3"
    missed = f"4 of 7 uncut plans ({named})"
    left_out = chosen.starts.untried([trial.request.origin for trial in ledger.trials])["left_out"]
    assert left_out[0] == missed


def test_windows_of_a_short_room_include_both_ends_of_the_model() -> None:
    of = repaired(budget=replace(BUDGET, trials=40))
    cuts = of.starts._windows(of.starts._all[0], 2.5)  # type: ignore[attr-defined]
    assert 4 <= len(cuts) < 10
    assert cuts[0] == (5, 6, 7), "the least influence first"
    assert {cuts[-2], cuts[-1]} == {(0, 1, 2), (9, 10, 11)}
