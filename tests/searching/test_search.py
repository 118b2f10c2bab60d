"""The loop: the order of its evaluations, their cost, and that it goes on after a kill."""

import dataclasses
import heapq
import itertools
import math
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.scores import Failure, Score
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import BridgedCut, RandomPlan, StrategyPlan, origin_words
from gptailor.searching.run.records import Aim
from gptailor.searching.run.schedule import Stages, Start, next_stage
from gptailor.searching.run.trials import FINAL, RANDOM, SEARCH, STARTS, Ledger, Trial
from gptailor.searching.run.workers import Alone, Done, Task, TaskOutcome, interruptible
from gptailor.searching.search import Scored, SearchEvent
from gptailor.searching.settings import SearchError
from tests.searching.landscape import (
    ACCURACY,
    BASE,
    KL,
    NLL,
    Counting,
    Drifting,
    Search,
    SearchSetting,
    Simulated,
    Staged,
    Stubborn,
    record,
    search,
    setting,
    space,
)


@pytest.fixture(scope="module")
def chosen() -> SearchSetting:
    return setting()


def phases(result: Search) -> list[str]:
    return [key for key, _ in itertools.groupby(t.request.phase for t in result.ledger.trials)]


def ran(folder: Path, chosen: SearchSetting, evaluate: Any = None, **options: Any) -> Search:
    result = search(folder, chosen, evaluate, **options)
    result.run()
    return result


# -------------------------------------------------------------------------------- the evaluations


def test_starting_plans_come_first_and_the_budget_is_kept(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    evaluate = Counting()
    result = search(tmp_path, chosen, evaluate)
    assert result.run() == "budget"
    assert phases(result) == [STARTS, RANDOM, SEARCH]
    names = [origin_words(trial.request.origin) for trial in result.ledger.of(STARTS)]
    assert names == [*(f"window L{n}" for n in (3, 2, 1, 0)), "best window"], "as they come"
    cost = result.ledger.cost()
    assert 11.25 < cost <= 12
    assert [trial.number for trial in result.ledger.trials] == list(
        range(len(result.ledger.trials))
    )
    bases = Counter(
        share for text, share, _ in evaluate.asked if text == gptailor.format(chosen.base)
    )
    assert bases == {0.25: 1, 1.0: 1}
    assert len(evaluate.asked) == 2 + sum(t.same_as is None for t in result.ledger.trials)
    assert sum(share for _, share, _ in evaluate.asked) == pytest.approx(1.25 + cost)


def test_starting_plans_take_half_of_the_budget_at_most(tmp_path: Path) -> None:
    chosen = setting(budget=Budget(2, 16, 64))
    result = ran(tmp_path, chosen)
    names = {origin_words(trial.request.origin) for trial in result.ledger.of(STARTS)}
    assert names == {f"window L{n}" for n in range(4)}
    assert result.ledger.cost() <= 2


def test_without_a_fidelity_all_samples_are_used(tmp_path: Path) -> None:
    result = ran(tmp_path, setting(budget=Budget(8, 64, 64)))
    assert {(t.share, t.request.samples) for t in result.ledger.trials} == {(1.0, 64)}
    assert result.ledger.cost() == 8


def test_shares_are_whole_samples_and_never_below_the_cheapest(tmp_path: Path) -> None:
    chosen = setting(strategy=Drifting(shares=(0.001, 0.33, 1.0)), budget=Budget(8, 16, 64))
    result = ran(tmp_path, chosen)
    assert {t.request.samples for t in result.ledger.of(SEARCH)} == {16, 21, 64}
    assert {t.share for t in result.ledger.of(SEARCH)} == {0.25, 21 / 64, 1.0}


def test_the_same_search_gives_the_same_trials(tmp_path: Path, chosen: SearchSetting) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    one, two = (ran(tmp_path / name, chosen).ledger.trials for name in "ab")
    assert record(one) == record(two)


def test_another_seed_gives_other_plans(tmp_path: Path, chosen: SearchSetting) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    one = ran(tmp_path / "a", chosen).ledger
    two = ran(tmp_path / "b", setting(seed=6)).ledger
    assert [t.plan for t in one.of(STARTS)] == [t.plan for t in two.of(STARTS)]
    assert {t.plan for t in one.of(SEARCH)}.isdisjoint(t.plan for t in two.of(SEARCH))


# ------------------------------------------------------------------------------ one plan, one score


def test_a_repeated_plan_is_recorded_and_costs_nothing(tmp_path: Path) -> None:
    evaluate = Counting()
    result = search(tmp_path, setting(strategy=Stubborn()), evaluate)
    assert result.run() == "exhausted"
    first, *rest = result.ledger.of(SEARCH)
    assert first.same_as is None
    assert {trial.same_as for trial in rest} == {first.number}
    assert {trial.values for trial in rest} == {first.values}
    assert {trial.cost for trial in rest} == {0}
    assert len(evaluate.asked) == len(set(evaluate.asked))
    assert result.ledger.hits == len(rest)
    again = search(tmp_path, setting(strategy=Stubborn()), evaluate)
    assert again.run() == "exhausted"
    assert len(again.ledger.trials) == len(result.ledger.trials)


def test_fewer_samples_are_another_evaluation(tmp_path: Path, chosen: SearchSetting) -> None:
    result = ran(tmp_path, chosen)
    low, *_, best = result.ledger.of(STARTS)
    again = next(t for t in result.ledger.trials if t.plan == best.plan and t is not best)
    assert (again.share, best.share) == (0.25, 1.0)
    assert best.same_as is None
    assert low.values != best.values


# ----------------------------------------------------------------------------------------- going on


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Killing:
    """Raises at the given moment: in the middle of an evaluation, or behind a told trial."""

    at: int
    evaluate: Callable[..., Any]
    count: int = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        for outcome in self.evaluate(*arguments, **named):
            self._moment()
            yield outcome

    def seen(self, event: SearchEvent) -> None:
        if isinstance(event, Scored):
            self._moment()

    def _moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed


@pytest.mark.parametrize("every", [1, 2, 3, 5, 11])
def test_a_search_killed_repeatedly_ends_with_the_same_study(
    tmp_path: Path, chosen: SearchSetting, every: int
) -> None:
    (tmp_path / "calm").mkdir()
    calm = ran(tmp_path / "calm", chosen)
    (tmp_path / "killed").mkdir()
    kills = 0
    while True:
        at = every + kills % 3
        killing = Killing(at, Counting())
        result = search(tmp_path / "killed", chosen, killing, on_event=killing.seen)
        try:
            result.run()
            break
        except Killed:
            kills += 1
        assert kills < 200
    assert kills >= 2
    assert record(result.ledger.trials) == record(calm.ledger.trials)
    assert record(result.study.trials) == record(calm.study.trials)
    assert result.study.typed == calm.study.typed
    seconds = [[trial.seconds for trial in of.trials] for of in (calm.study, result.study)]
    assert seconds == [[t.seconds for t in of.ledger.trials] for of in (calm, result)]


def test_a_larger_budget_resumes_an_ended_search(tmp_path: Path, chosen: SearchSetting) -> None:
    first = ran(tmp_path, chosen)
    more = ran(tmp_path, setting(budget=Budget(20, 16, 64)))
    many = len(first.ledger.trials)
    assert record(more.ledger.trials[:many]) == record(first.ledger.trials)
    assert 19.25 < more.ledger.cost() <= 20
    assert phases(more) == [STARTS, RANDOM, SEARCH]


def test_a_search_that_is_over_evaluates_nothing(tmp_path: Path, chosen: SearchSetting) -> None:
    first = ran(tmp_path, chosen)
    evaluate = Counting()
    again = search(tmp_path, chosen, evaluate)
    assert again.run() == "budget"
    assert evaluate.asked == []
    assert record(again.ledger.trials) == record(first.ledger.trials)


# --------------------------------------------------------------------------------------- what fails


def test_a_failure_is_recorded_and_never_wins(tmp_path: Path, chosen: SearchSetting) -> None:
    evaluate = Counting(fails=lambda plan: plan.drops[0].position == 0)
    result = ran(tmp_path, setting(seed=1), evaluate)
    failed = [trial for trial in result.ledger.trials if trial.values is None]
    assert failed
    assert {trial.failure for trial in failed} == {Failure("search", "too bad")}
    best = result.ledger.best()
    assert best is not None
    assert best.values is not None
    assert best not in failed


def test_a_search_without_any_score_stops_with_the_reason(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    evaluate = Counting(fails=lambda plan: True)
    result = search(tmp_path, chosen, evaluate)
    with pytest.raises(SearchError, match=r"none of the first 8 trials has.* 8 of them: too bad"):
        result.run()
    assert len(result.study.trials) == 8
    mended = ran(tmp_path, chosen)
    assert mended.ledger.best() is not None
    assert [t.values for t in mended.ledger.trials[:8]] == [None] * 8


def test_a_base_without_a_score_ends_the_search(tmp_path: Path, chosen: SearchSetting) -> None:
    class Bad(Counting):
        def score(self, plan: Plan, *arguments: Any) -> Any:
            return (
                Failure("nan", "no number") if not plan.drops else super().score(plan, *arguments)
            )

    with pytest.raises(SearchError, match="the base has no score: nan: no number"):
        search(tmp_path, chosen, Bad()).run()


class BasedOn(Counting):
    """An evaluator with a score of our own for the base."""

    def __init__(self, value: float, aims: tuple[Aim, ...] = (NLL,)) -> None:
        super().__init__(aims)
        self.value = value

    def score(self, plan: Plan, *arguments: Any) -> Any:
        return Score(self.value, 0.0, 64) if not plan.drops else super().score(plan, *arguments)


def test_a_base_without_a_finite_score_is_refused(tmp_path: Path, chosen: SearchSetting) -> None:
    with pytest.raises(SearchError, match="no score: the score is inf"):
        search(tmp_path, chosen, BasedOn(math.inf)).run()
    assert search(tmp_path, chosen).study.trials == []


@pytest.mark.parametrize(
    ("value", "unit", "width"),
    [(0.0, "points", 1.0), (-2.0, "% of the base's score", 2.0)],
)
def test_a_base_may_score_zero_or_less(
    tmp_path: Path, value: float, unit: str, width: float
) -> None:
    accuracy = ACCURACY._replace(unit="accuracy")
    result = ran(tmp_path, setting(aims=(accuracy,)), BasedOn(value, (accuracy,)))
    ledger = result.ledger
    best = ledger.best()
    assert best is not None
    assert best.values is not None
    gained = (best.values[0] - value) / width
    assert ledger.loss_unit == unit
    assert ledger.mean_loss(best) == pytest.approx(-gained)
    lost = ledger.loss(best)
    assert lost is not None
    assert lost.value == pytest.approx(-100 * gained)
    again = search(tmp_path, setting(aims=(accuracy,)), BasedOn(value, (accuracy,)))
    again.run()
    assert len(again.ledger.trials) == len(ledger.trials), "the journal is read again"


def test_held_out_losses_keep_the_unit_of_points() -> None:
    ledger = Ledger((ACCURACY._replace(unit="accuracy"),), 64)
    ledger.references[64] = (0.0,)
    assert ledger.comparison((0.25,)).widths == (0.01,)
    ledger.references[64] = (0.5,)
    assert ledger.comparison((0.25,)).widths == (0.0025,)


def test_the_base_may_be_zero_where_nothing_is_a_share_of_it(tmp_path: Path) -> None:
    class Zero(Counting):
        def score(self, plan: Plan, *arguments: Any) -> Any:
            return Score(0.0, 0.0, 64) if not plan.drops else super().score(plan, *arguments)

    result = ran(tmp_path, setting(aims=(KL,)), Zero((KL,)))
    assert result.ledger.best() is not None


def test_an_infinite_score_is_a_failure(tmp_path: Path, chosen: SearchSetting) -> None:
    class Huge(Counting):
        def score(self, plan: Plan, *arguments: Any) -> Any:
            first = plan.drops and plan.drops[0].position == 0
            return (
                Score(float("inf"), float("inf"), 64) if first else super().score(plan, *arguments)
            )

    result = ran(tmp_path, setting(seed=1), Huge())
    assert {str(t.failure) for t in result.ledger.trials if t.values is None} == {
        "the score is inf"
    }


# ------------------------------------------------------------------------------- several objectives


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("three")
    return ran(folder, setting(aims=(NLL, ACCURACY, KL), budget=Budget(30, 16, 64)))


def test_the_front_has_the_undominated_trials(three: Search) -> None:
    ledger = three.ledger
    whole = [t for t in ledger.trials if t.full and t.same_as is None]
    front = ledger.front()
    assert front
    for item in front:
        others = (ledger.losses([t])[0] for t in whole if t is not item)
        mine = ledger.losses([item])[0]
        assert not any((o <= mine).all() and (o < mine).any() for o in others)
    assert [ledger.losses([t])[0][0] for t in front] == sorted(
        ledger.losses([t])[0][0] for t in front
    )


def test_the_best_has_the_smallest_worst_loss(three: Search) -> None:
    ledger = three.ledger
    best = ledger.best()
    assert best is not None
    worst = [max(row) for row in ledger.losses(ledger.candidates())]
    assert max(ledger.losses([best])[0]) == min(worst)
    assert best in ledger.front()


def test_a_preferred_objective_decides(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        chosen = setting(aims=(NLL, ACCURACY, KL))
        ledger = ran(folder, chosen, prefer=number).ledger
        best = ledger.best()
        assert best is not None
        losses = ledger.losses(ledger.candidates())[:, number]
        assert ledger.losses([best])[0][number] == losses.min()


def test_weights_are_drawn_for_each_ask(tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    @dataclass(frozen=True)
    class Weighing:
        name: str = "weighing"
        population: int = 1

        def init(self, *_: Any) -> Any:
            return ()

        def ask(self, table: Any, state: Any, key: Any, weights: Any) -> Any:
            seen.append(tuple(map(float, weights)))
            population, shares, _ = Drifting(shares=(1.0,), population=1).ask(
                table, Drifting().init(table, 1, key), key, weights
            )
            return population, shares, state

        def tell(self, table: Any, state: Any, *_: Any) -> Any:
            return state

    chosen = setting(aims=(NLL, ACCURACY), strategy=Weighing())
    ran(tmp_path, chosen)
    assert len(set(seen)) == len(seen) >= 5
    assert all(sum(weights) == pytest.approx(1) for weights in seen)


# ------------------------------------------------------------------------------------------ bridges


@pytest.mark.parametrize(
    ("bridge", "low", "full"),
    [
        (None, "bare", "bare"),
        ("each", "bridged", "bridged"),
        ("from-full", "bare", "bridged"),
    ],
)
def test_the_bridge_setting_chooses_bridged_trials(
    tmp_path: Path, bridge: Any, low: Stage, full: Stage
) -> None:
    evaluate = Counting()
    result = ran(tmp_path, setting(budget=Budget(8, 16, 64, bridge)), evaluate)
    assert {t.request.stage for t in result.ledger.trials if not t.full} == {low}
    assert {t.request.stage for t in result.ledger.trials if t.full} == {full}
    base = gptailor.format(gptailor.loads(BASE))
    assert {stage for text, share, stage in evaluate.asked if share == 1 and text != base} == {full}


def finals(ledger: Ledger) -> list[Trial]:
    """The finalists, the best first; the best start comes last if it isn't one of the best."""
    results = sorted(ledger.of(FINAL), key=lambda trial: trial.request.slot)
    starts = {trial.plan for trial in ledger.of(STARTS)}
    assert any(trial.plan in starts for trial in results)
    return results


def test_the_best_are_bridged_in_the_end(tmp_path: Path) -> None:
    chosen = setting(budget=Budget(20, 16, 64, "finalists"))
    result = ran(tmp_path, chosen)
    ledger = result.ledger
    assert phases(result) == [STARTS, RANDOM, SEARCH, FINAL]
    final = finals(ledger)
    assert len(final) == 3
    assert {t.request.stage for t in final} == {"bridged"}
    assert {t.request.stage for t in ledger.trials if t.request.phase != FINAL} == {"bare"}
    losses = sorted(
        (float(ledger.losses([t])[0][0]), t.plan)
        for t in ledger.trials
        if t.full and t.request.phase != FINAL and t.same_as is None
    )
    assert {t.plan for t in final[:2]} == {plan for _, plan in losses[:2]}
    assert ledger.best() in final
    assert ledger.cost() <= 20


def test_an_unbridged_cut_is_a_finalist_before_a_bridged_one(tmp_path: Path) -> None:
    result = space()

    class Cut(Staged):
        def stages(self) -> Stages:
            others = [StrategyPlan(strategy=item) for item in ("influence", "other", "another")]
            plans = zip([*others, BridgedCut(rank=1)], self.genomes, strict=True)
            yield [Start(*plan, 1.0) for plan in plans]

    chosen = setting(budget=Budget(15, 64, 64, "finalists"), starts=Cut(result), space=result)
    assert chosen.budget.finalists == 1
    ledger = ran(tmp_path, chosen).ledger
    [start] = ledger.ranked(ledger.of(STARTS), 1)
    assert not isinstance(start.request.origin, BridgedCut)
    before = ledger.of(STARTS, RANDOM, SEARCH)
    wanted = {start.plan, ledger.ranked([t for t in before if t.full], 1)[0].plan}
    assert len(wanted) == 2
    assert {t.plan for t in ledger.of(FINAL)} == wanted


def test_finalists_have_several_sizes_if_size_is_an_objective(tmp_path: Path) -> None:
    size = Aim("parameters()", "minimize", "base", size=True)

    class Sized(Counting):
        def score(self, plan: Plan, aim: Aim, share: float, stage: Stage) -> Any:
            if not aim.size:
                return super().score(plan, aim, share, stage)
            return Score(1000.0 + 10 * len(plan.layers), 0.0, 0)

    aims = (NLL, size)
    chosen = setting(aims=aims, budget=Budget(20, 64, 64, "finalists", wanted=3))
    ledger = ran(tmp_path, chosen, Sized(aims)).ledger
    whole = [t for t in ledger.of(STARTS, RANDOM, SEARCH) if t.full and t.values]
    sizes = sorted({t.values[1] for t in whole if t.values})
    assert len(sizes) > 3
    three = finals(ledger)[:3]
    results = [t.values[1] for t in three if t.values]
    assert results == sorted(results)
    assert (results[0], results[-1]) == (sizes[0], sizes[-1])
    for trial in three:
        alike = [t for t in whole if t.values and trial.values and t.values[1] == trial.values[1]]
        best = ledger.ranked(alike, 1)[0]
        assert best.plan == trial.plan


@pytest.mark.parametrize("bridge", [None, "each", "from-full", "finalists"])
def test_the_requested_number_of_finalists_is_healed(tmp_path: Path, bridge: Any) -> None:
    chosen = setting(budget=Budget(20, 16, 64, bridge, heals=True, wanted=3))
    ledger = ran(tmp_path, chosen).ledger
    final = finals(ledger)
    starts = {trial.plan for trial in ledger.of(STARTS)}
    alone = not any(trial.plan in starts for trial in final[:3])
    assert [t.request.stage for t in final] == ["healed"] * (3 + alone)
    assert "healed" not in {t.request.stage for t in ledger.trials if t.request.phase != FINAL}
    chosen_by = [t for t in ledger.trials if t.full and t.request.phase != FINAL and not t.same_as]
    best = sorted(chosen_by, key=lambda t: t.values or (9e9,))[:3]
    before = {t: ledger.before(t) for t in final}
    assert {before[t].number for t in final[:3]} == {item.number for item in best}
    assert all(one and t.values and t.values < one.values for t, one in before.items())
    assert ledger.best() in final
    assert ledger.cost() <= 20


def test_a_finalist_that_cannot_be_healed_counts_as_failed(tmp_path: Path) -> None:
    class Unhealing(Counting):
        def score(self, plan: Plan, aim: Any, share: float, stage: Stage) -> Any:
            score = super().score(plan, aim, share, stage)
            failing = stage == "healed" and plan.drops and (every or not self.asked[1:])
            return Failure("error", "error[C806]: too short") if failing else score

    for every in (True, False):
        (folder := tmp_path / str(every)).mkdir()
        evaluate = Unhealing()
        chosen = setting(budget=Budget(20, 16, 64, heals=True, wanted=2))
        calm = search(folder, chosen, evaluate)
        assert calm.run() == "budget"
        final = finals(calm.ledger)
        assert len(final) == 3
        best = calm.ledger.best()
        assert best is not None
        if every:
            assert {str(t.failure) for t in final} == {"error: error[C806]: too short"}
            assert best.request.stage == "bare"
        else:
            assert best in final


def test_a_search_killed_while_healing_heals_no_finalist_twice(tmp_path: Path) -> None:
    chosen = setting(budget=Budget(20, 16, 64, heals=True, wanted=4))
    (tmp_path / "undisturbed").mkdir()
    many = len(finals(ran(tmp_path / "undisturbed", chosen).ledger))
    assert many >= 4
    evaluate = Counting()
    for _ in range(6):
        result = search(tmp_path, chosen, evaluate)
        killing = [0]

        def seen(event: SearchEvent, killing: list[int] = killing) -> None:
            healed = isinstance(event, Scored) and event.trial.request.stage == "healed"
            killing[0] += healed
            if killing[0] == 2:
                raise Killed

        result.on_event = seen
        try:
            result.run()
            break
        except Killed:
            continue
    assert len(finals(result.ledger)) == many
    healed = Counter(text for text, _, stage in evaluate.asked if stage == "healed")
    assert set(healed.values()) == {1}
    assert len(healed) == many


def test_more_finalists_resume_an_ended_search(tmp_path: Path) -> None:
    def chosen(wanted: int) -> SearchSetting:
        return setting(budget=Budget(20, 16, 64, heals=True, wanted=wanted))

    few = ran(tmp_path, chosen(1)).ledger
    evaluate = Counting()
    more = ran(tmp_path, chosen(3), evaluate).ledger
    assert [len(item.of(FINAL)) for item in (few, more)] == [2, 4]
    assert [stage for _, _, stage in evaluate.asked].count("healed") == 2
    assert few.of(FINAL)[0].plan == more.of(FINAL)[0].plan
    nothing = Counting()
    assert ran(tmp_path, chosen(3), nothing).ledger.trials[-1].number == more.trials[-1].number
    assert nothing.asked == []


# ---------------------------------------------------------------------------------- several workers


def test_a_slow_worker_does_not_hold_the_others(tmp_path: Path) -> None:
    drifting = Drifting(shares=(1.0, 1.0, 1.0))
    chosen = setting(budget=Budget(40, 64, 64), strategy=drifting, patience=2.0)
    workers = Simulated(Counting(), slow=(1.0, 1.0, 20.0))
    result = search(tmp_path, chosen, workers=workers)
    assert result.run() == "budget"
    assert result.ledger.cost() == 40
    assert workers.done[2] <= 6
    assert workers.done[0] >= 15
    assert workers.clock < 100
    assert len({t.request.key for t in result.ledger.trials}) == len(result.ledger.trials)


def test_the_speed_of_workers_changes_nothing(tmp_path: Path) -> None:
    """Workers of any speed, lost ones among them: one seed and as many workers give one study."""
    chosen = setting(budget=Budget(30, 16, 64))
    moments = itertools.count()
    kinds: dict[str, Any] = {
        "alike": {"slow": (1.0, 1.0)},
        "unlike": {"slow": (1.0, 3.7)},
        "the other": {"slow": (2.9, 1.0)},
        "lost": {"slow": (1.0, 1.3), "dies": lambda *_: next(moments) % 5 == 3},
    }
    results: dict[str, Search] = {}
    for name, kind in kinds.items():
        (folder := tmp_path / name).mkdir()
        results[name] = ran(folder, chosen, workers=Simulated(Counting(), **kind))
    calm = results["alike"]
    assert [t.request.asked_after for t in calm.ledger.of(SEARCH)][-1] > 15
    for other in results.values():
        assert record(other.ledger.trials) == record(calm.ledger.trials)
        assert other.study.typed == calm.study.typed


def test_trials_are_recorded_in_the_order_of_asking(tmp_path: Path, chosen: SearchSetting) -> None:
    ledger = ran(tmp_path, chosen, workers=Simulated(Counting(), (1.0, 2.3, 1.4))).ledger
    order = [STARTS, RANDOM, SEARCH]
    keys = [(order.index(t.request.phase), *t.request.key[1:]) for t in ledger.trials]
    assert keys == sorted(keys)


def test_the_search_continues_without_a_stuck_worker(tmp_path: Path) -> None:
    """Its trial is told when it ends, and the study notes that the order was given up."""
    chosen = setting(budget=Budget(20, 64, 64), strategy=Drifting(shares=(1.0, 1.0, 1.0)))
    chosen = dataclasses.replace(chosen, patience=5.0)
    workers = Simulated(Counting(), slow=(1.0, 1.0, 30.0))
    result = ran(tmp_path, chosen, workers=workers)
    assert result.study.typed.late >= 1
    assert result.ledger.cost() == 20
    keys = [t.request.key for t in result.ledger.of(SEARCH)]
    assert keys != sorted(keys)
    assert len(set(keys)) == len(keys)


def test_a_lost_workers_trials_run_again(tmp_path: Path, chosen: SearchSetting) -> None:
    moments = itertools.count()
    evaluate = Counting()
    workers = Simulated(evaluate, (1.0, 1.5), dies=lambda *_: next(moments) % 4 == 3)
    result = search(tmp_path, chosen, workers=workers)
    assert result.run() == "budget"
    trials = result.ledger.trials
    assert not [t for t in trials if t.values is None]
    calm = sum(t.same_as is None for t in trials) + 2
    assert len(evaluate.asked) >= calm
    slots = {(t.request.phase, t.request.ask) for t in trials}
    for phase, ask in slots:
        numbers = sorted(t.request.slot for t in trials if t.request.key[:2] == (phase, ask))
        assert numbers == list(range(len(numbers)))


NEVER = (Failure("error", "never comes"),)


def test_a_plan_that_kills_its_workers_is_a_failure_in_the_end(tmp_path: Path) -> None:
    def kills(worker: int, task: Task) -> bool:
        return any(plan.drops and plan.drops[0].position == 0 for plan in task.plans)

    class Fatal(Counting):
        def __call__(self, plans: Any, samples: int, *, stage: Stage, race: Any = None) -> Any:
            good = [plan for plan in plans if not (plan.drops and plan.drops[0].position == 0)]
            for index, outcome in super().__call__(good, samples, stage=stage):
                yield plans.index(good[index]), outcome
            if len(good) < len(plans):
                yield 0, NEVER

    class Dying(Simulated):
        def submit(self, task: Task) -> None:
            super().submit(task)
            self.events = [e for e in self.events if getattr(e[3], "outcomes", "") != NEVER]
            heapq.heapify(self.events)

    workers = Dying(Fatal(), (1.0, 1.0), dies=kills)
    result = search(tmp_path, setting(seed=1), workers=workers)
    result.run()
    failed = {t.failure for t in result.ledger.trials if t.values is None}
    assert failed == {Failure("search", "its worker was lost 3 times")}


@pytest.mark.parametrize("at", [3, 9, 14, 16])
def test_a_killed_search_with_several_workers_resumes(
    tmp_path: Path, chosen: SearchSetting, at: int
) -> None:
    killing = Killing(at, Counting())
    first = search(
        tmp_path, chosen, workers=Simulated(Counting(), (1.0, 1.3)), on_event=killing.seen
    )
    with pytest.raises(Killed):
        first.run()
    result = search(tmp_path, chosen, workers=Simulated(Counting(), (1.0, 1.3)))
    assert result.run() == "budget"
    assert record(result.ledger.trials[:at]) == record(first.ledger.trials)
    (tmp_path / "calm").mkdir()
    calm = ran(tmp_path / "calm", chosen, workers=Simulated(Counting(), (1.3, 1.0)))
    assert record(result.ledger.trials) == record(calm.ledger.trials)


def test_one_plan_on_two_workers_is_evaluated_once(tmp_path: Path) -> None:
    evaluate = Counting()
    workers = Simulated(evaluate, (1.0, 1.7, 1.2))
    result = search(tmp_path, setting(strategy=Stubborn()), workers=workers)
    assert result.run() == "exhausted"
    assert len(evaluate.asked) == len(set(evaluate.asked))


# ------------------------------------------------------------------------------------- small things


class NoStarts:
    def stages(self) -> Stages:
        yield []

    def focus(self, told: Sequence[Start]) -> None:
        return None


def test_a_search_runs_without_starting_plans(tmp_path: Path) -> None:
    result = ran(tmp_path, setting(starts=NoStarts(), budget=Budget(6, 16, 64)))
    assert phases(result) == [RANDOM, SEARCH]


def test_one_trial_is_a_search(tmp_path: Path) -> None:
    result = ran(tmp_path, setting(budget=Budget(1, 64, 64)))
    assert result.ledger.cost() <= 2
    assert result.ledger.best() is not None


def test_the_results_of_a_stage_are_received_together(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watching(Staged):
        def stages(self) -> Stages:
            stages, told = super().stages(), None
            while plans := next_stage(stages, told):
                told = yield plans
                seen.append(len(told))

    ran(tmp_path, setting(starts=Watching(space())))
    assert set(seen) == {4, 1}


def test_a_stage_with_other_plans_keeps_the_trials_of_its_plans(tmp_path: Path) -> None:
    """A search that goes on with more trials has room for more starting plans of a stage."""

    class Ordered(Staged):
        def __init__(self, order: Sequence[int]) -> None:
            super().__init__(space())
            self.order = order
            self.told: list[Start] = []

        def stages(self) -> Stages:
            self.told = yield [Start(RandomPlan(), self.genomes[n], 0.25) for n in self.order]

    for order, trials, cost in (((0, 1), 2, 12), ((2, 0, 1), 3, 14), ((2, 0, 1), 4, 14)):
        starts = Ordered(order)
        result = search(tmp_path, setting(starts=starts, budget=Budget(cost, 16, 64)))
        for _ in result.steps():
            if len(result.ledger.trials) == trials:
                break

    assert len(result.ledger.of(STARTS)) == 3
    for told, n in zip(starts.told, order, strict=True):
        assert all(map(np.array_equal, told.genome, starts.genomes[n]))


def test_the_single_worker_returns_the_scores_of_its_judge() -> None:
    workers = Alone(Counting())
    plan = gptailor.loads(BASE)
    workers.submit(Task(7, (plan, plan), 64, "bare", ()))
    events = [workers.next() for _ in range(3)]
    assert [type(event) for event in events] == [TaskOutcome, TaskOutcome, Done]
    assert [event.place for event in events[:2]] == [1, 0]
    assert {event.task for event in events} == {7}


# ------------------------------------------------------------------------------------------- Ctrl-C


def test_a_process_that_ignores_interrupts_is_not_interrupted() -> None:
    """A script's background job: Ctrl-C is for what runs in the foreground."""
    events: list[str] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(events.append) as tell:
            signal.raise_signal(signal.SIGINT)
            tell("an event")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert events == ["an event"]
