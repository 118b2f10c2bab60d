"""The verdict on a found plan: the mean over objectives, in pairs, against a computation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.scores import PerSample, mean
from gptailor.plan.plan import Plan
from gptailor.searching.run.origin import StrategyPlan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.scores import Comparison, Scores
from gptailor.searching.run.trials import SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.searching.space.genome import Genome
from gptailor.searching.summary import verdict

NOTHING = Genome(np.zeros(1, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.float32))
NLL = Aim("nll", "minimize", "base", unit="nats")
ACCURACY = Aim("accuracy", "maximize", "base", unit="accuracy")
DRAWN = np.random.default_rng(11)
TEXT = DRAWN.normal(3.0, 1.0, 100)  # the difficulty of each sample, for any plan


def scores(*each: Sequence[float]) -> Scores:
    made = [mean(list(map(float, item))) for item in each]
    samples = tuple(PerSample(tuple(map(float, item)), (1,) * len(item)) for item in each)
    return Scores([item.value for item in made], [item.stderr for item in made], samples)


def test_a_gain_has_the_error_of_the_differences() -> None:
    mine = TEXT - 0.05 + DRAWN.normal(0, 0.1, 100)
    measure = Comparison((NLL,), (0,), (1.0,), ("a.txt",), "nats")
    result = measure.gain(scores(mine), scores(TEXT))
    assert result.value == pytest.approx((TEXT - mine).mean(), abs=1e-9)
    assert result.stderr == pytest.approx((TEXT - mine).std(ddof=1) / 10, rel=1e-9)
    assert result.sure
    unpaired = math.sqrt(TEXT.var(ddof=1) / 50)
    assert result.stderr < unpaired / 5


def test_objectives_on_one_text_have_their_errors_together() -> None:
    """Twice the same objective is as sure as once; on two texts it would seem surer."""
    mine = TEXT + DRAWN.normal(0, 0.1, 100)
    twice = (NLL, NLL), (0, 1), (1.0, 1.0)
    alone = Comparison((NLL,), (0,), (1.0,), ("a",)).gain(scores(mine), scores(TEXT))
    both = Comparison(*twice, ("a", "a")).gain(scores(mine, mine), scores(TEXT, TEXT))
    apart = Comparison(*twice, ("a", "b")).gain(scores(mine, mine), scores(TEXT, TEXT))
    assert both.stderr == pytest.approx(alone.stderr)
    assert apart.stderr == pytest.approx(alone.stderr / math.sqrt(2))
    assert both.value == pytest.approx(alone.value)


def test_a_maximised_objective_gains_with_larger_values() -> None:
    measure = Comparison((NLL, ACCURACY), (0, 1), (2.0, 0.5), ("a", "b"))
    result = measure.gain(scores([2.0] * 9, [0.6] * 9), scores([2.5] * 9, [0.5] * 9))
    assert result.value == pytest.approx((0.5 / 2.0 + 0.1 / 0.5) / 2)


def test_without_samples_the_scores_own_errors_count() -> None:
    measure = Comparison((NLL,), (0,), (1.0,), ("a",))
    result = measure.gain(Scores([2.0], [0.3], ()), Scores([2.5], [0.4], (None,)))
    assert result == (0.5, pytest.approx(0.5))


def trial(number: int, phase: str, each: Sequence[float], **changes: Any) -> Trial:
    request = TrialRequest(
        phase, 0, number, StrategyPlan(strategy=f"plan {number}"), NOTHING, 4, "bare", 0
    )
    result = scores(each)
    fields = {"values": tuple(result.values), "stderrs": tuple(result.stderrs),
            "per_sample": result.per_sample}  # fmt: skip
    return Trial(number, request, str(number), 1.0, **(fields | changes))


def ledger(*trials: Trial, aims: tuple[Aim, ...] = (NLL,)) -> Ledger:
    made = Ledger(aims, full=4)
    made.references[4] = (2.0,) * len(aims)
    for trial in trials:
        made.add(trial)
    return made


SIMPLE = 'tailor 1\nmodel base = "./base"\ndrop L3\n'
WORDY = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nL0 from math\ndrop L3\n'


def judged(
    of: Ledger,
    plans: dict[int, str],
    sizes: dict[int, float] | None = None,
    recipes: dict[int, Scores] | None = None,
) -> Any:
    def plan_of(one: Trial) -> Plan:
        return gptailor.loads(plans[one.number])

    def size(one: Trial) -> float:
        return (sizes or {}).get(one.number, 10.0)

    def own(one: Trial | None) -> Scores | None:
        return scores([2.0] * 100) if one is None else one.scores

    measure = of.comparison((2.0,), samples=("a.txt",))
    uncut = {} if recipes is None else recipes
    return verdict(
        of, measure, own, plan_of, size, 12.0, held=True, uncut=lambda one: uncut.get(one.number)
    )


def test_a_plan_better_than_every_start_is_best() -> None:
    of = ledger(trial(0, STARTS, TEXT), trial(1, STARTS, TEXT + 1), trial(2, SEARCH, TEXT - 0.1))
    result = judged(of, {0: SIMPLE, 1: SIMPLE, 2: WORDY})
    assert result.gain.sure
    assert (result.best.number, result.found.number, result.starts) == (2, 2, 2)
    assert result.rival.number == 0
    assert result.gain.value == pytest.approx(0.1)
    assert result.no_larger is False


def test_the_surely_better_of_two_rivals_decides() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    by_luck = trial(0, STARTS, TEXT - 0.05 + 0.4 * noise, values=(3.0,))
    surely = trial(1, STARTS, TEXT - 0.04 + 0.1 * noise, values=(3.0,))
    of = ledger(by_luck, surely, trial(2, SEARCH, TEXT, values=(2.0,)))
    result = judged(of, dict.fromkeys(range(3), SIMPLE))
    assert result.gain.reversed.sure
    assert result.gain.value == pytest.approx(-0.04)


def test_the_simpler_plan_wins_a_tie() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean() + 0.05  # a little better, by luck
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + noise))
    result = judged(of, {0: SIMPLE, 1: WORDY})
    assert not result.gain.sure
    assert (result.found.number, result.best.number) == (1, 0)
    assert not result.gain.reversed.sure
    assert judged(of, {0: WORDY, 1: SIMPLE}).best.number == 1


@pytest.mark.parametrize(("errors", "best"), [(0.5, 0), (0.99, 0), (1.01, 1), (1.9, 1)])
def test_a_simpler_plan_is_handed_over_within_one_standard_error(errors: float, best: int) -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean() + errors * noise.std(ddof=1) / 10
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + noise))
    result = judged(of, {0: SIMPLE, 1: WORDY})
    assert not result.gain.sure
    assert result.best.number == best


def test_a_start_that_leads_on_the_deciding_samples_is_best() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean() - 0.15  # worse by 1.5 standard errors
    of = ledger(trial(0, STARTS, TEXT + 0.5), trial(1, SEARCH, TEXT + noise))
    of.add(trial(2, STARTS, TEXT))
    of.trials[1] = replace(of.trials[1], values=(1.0,))  # the best by the search's own scores
    assert judged(of, {0: SIMPLE, 1: SIMPLE, 2: WORDY}).best.number == 2


def test_a_recipe_that_lost_uncut_does_not_win_a_tie() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean() + 0.05
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + noise))
    plans = {0: SIMPLE, 1: WORDY}
    alike = {0: scores(TEXT), 1: scores(TEXT)}
    worse = {0: scores(TEXT + 0.3), 1: scores(TEXT)}
    assert judged(of, plans, recipes=alike).best.number == 0
    assert judged(of, plans, recipes=worse).best.number == 1
    for errors, best in ((0.9, 0), (1.1, 1)):
        moved = TEXT + noise + 0.05 + errors * noise.std(ddof=1) / 10
        assert judged(of, plans, recipes={0: scores(moved), 1: scores(TEXT)}).best.number == best
    assert judged(of, plans, recipes={1: scores(TEXT)}).best.number == 1, "never scored uncut"
    assert judged(of, plans, recipes={0: scores(TEXT)}).best.number == 0, "recipes weren't compared"


def test_the_smaller_of_two_equal_plans_is_simpler() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean() + 0.05
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + noise))
    assert judged(of, {0: SIMPLE, 1: WORDY}, {0: 10.0, 1: 9.0}).best.number == 1


def test_the_better_score_decides_between_equally_simple_plans() -> None:
    noise = np.random.default_rng(5).normal(0, 1.0, 100)
    noise -= noise.mean() + 0.05
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + noise))
    result = judged(of, {0: SIMPLE, 1: SIMPLE})
    assert not result.gain.sure
    assert result.best.number == 1


def test_a_simpler_plan_that_loses_to_another_is_not_the_best() -> None:
    noise = DRAWN.normal(0, 1.0, 100)
    noise -= noise.mean()
    of = ledger(
        trial(0, STARTS, TEXT + 0.02),
        trial(1, STARTS, TEXT - 0.01 + DRAWN.normal(0, 0.001, 100)),
        trial(2, SEARCH, TEXT + noise - 0.05),
    )
    result = judged(of, {0: SIMPLE, 1: WORDY, 2: WORDY + "L1.mlp from math\n"})
    assert not result.gain.sure
    assert result.best.number == 1


def test_a_start_may_be_the_best_plan() -> None:
    of = ledger(trial(0, STARTS, TEXT), trial(1, SEARCH, TEXT + 1))
    result = judged(of, {0: SIMPLE, 1: SIMPLE})
    assert result.rival is result.found
    assert result.best.number == 0
    assert not result.gain.sure


def test_a_missing_score_gives_no_verdict() -> None:
    assert judged(ledger(), {}) is None
    alone = judged(ledger(trial(0, SEARCH, TEXT)), {0: SIMPLE})
    assert alone.rival is None


def test_sizes_are_no_measure_of_quality() -> None:
    size = Aim("parameters()", "minimize", "base", size=True, unit="parameters")
    of = ledger(aims=(NLL, size))
    measure = of.comparison((2.0, 100.0), samples=("a", "b"))
    assert (measure.numbers, measure.unit) == ((0,), "nats")
    mine = Scores([2.0, 50.0], [0.1, 0.0], ())
    assert measure.gain(mine, Scores([2.0, 100.0], [0.1, 0.0], ())).value == 0


def test_a_preferred_objective_is_compared_alone() -> None:
    of = Ledger((ACCURACY, NLL), 4, prefer=1)
    measure = of.comparison((0.5, 2.0), samples=("a", "b"))
    assert (measure.numbers, measure.unit) == ((1,), "nats")
    mine, theirs = Scores([0.1, 2.0], [0.1] * 2, ()), Scores([0.5, 2.5], [0.1] * 2, ())
    assert measure.gain(mine, theirs).value == pytest.approx(0.5)


def test_objectives_without_a_share_are_compared_by_the_spread_of_the_starts() -> None:
    """The unit is the unit of the losses that rank plans, and not a share of the base's."""
    kl = Aim("kl", "minimize", "spread", unit="nats")
    of = Ledger((ACCURACY, kl), 4)
    of.references[4] = (0.5, 0.0)
    for number, values in enumerate([(0.2, 1.0), (0.4, 3.0)]):
        of.add(trial(number, STARTS, TEXT, values=values, stderrs=(0.0, 0.0), per_sample=()))
    measure = of.comparison((0.5, 0.0), samples=("a", "b"))
    assert measure.unit == of.loss_unit == "spreads of the starting plans' scores"
    assert measure.widths == pytest.approx((0.2, 2.0))
    mine, theirs = Scores([0.3, 2.0], [0.0] * 2), Scores([0.2, 3.0], [0.0] * 2)
    assert measure.gain(mine, theirs).value == pytest.approx((0.5 + 0.5) / 2)


def test_shares_of_the_base_are_in_percent_in_messages() -> None:
    of = Ledger((ACCURACY, ACCURACY), 4)
    of.references[4] = (0.5, 0.8)
    of.add(one := trial(0, SEARCH, TEXT, values=(0.4, 0.8), stderrs=(0.05, 0.0), per_sample=()))
    assert of.comparison((0.5, 0.8)).unit == of.loss_unit == "% of the base's score"
    assert of.loss(one) == pytest.approx((10.0, 5.0))


def test_the_other_objectives_measure_quality_if_a_size_is_preferred() -> None:
    size = Aim("parameters()", "minimize", "base", size=True, unit="parameters")
    of = Ledger((NLL, NLL, size), 4, prefer=2)
    of.references[4] = (2.0, 2.0, 100.0)
    exact = {"stderrs": (0.0,) * 3, "per_sample": ()}
    small = trial(0, STARTS, TEXT, values=(4.0, 3.0, 50.0), **exact)
    large = trial(1, STARTS, TEXT, values=(3.0, 2.0, 90.0), **exact)
    for item in (small, large):
        of.add(item)
    assert [of.mean_loss(item) for item in (small, large)] == [0.75, 0.25]
    assert of.comparison(None, samples=("a", "b", "c")).numbers == (0, 1)


def test_the_best_plan_of_the_preferred_size_is_found() -> None:
    size = Aim("parameters()", "minimize", "base", size=True, unit="parameters")
    of = Ledger((NLL, size), 4, prefer=1)
    of.references[4] = (2.0, 100.0)
    for number, values in enumerate([(5.0, 50.0), (3.0, 50.0), (4.0, 50.0), (2.1, 90.0)]):
        of.add(trial(number, SEARCH, TEXT, values=values, stderrs=(0.0, 0.0), per_sample=()))
    best = of.best()
    assert best is not None
    assert best.number == 1
    assert [item.number for item in of.ranked(of.trials, 4)] == [1, 2, 0, 3]
