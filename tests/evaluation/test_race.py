"""Racing: the law of paired differences, and trials that end where they have lost."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from gptailor.evaluation.scores import (
    HOPELESS,
    Outcomes,
    PerSample,
    Race,
    Score,
    below_together,
    race_counts,
)
from gptailor.evaluation.scores import chance_below as probability
from gptailor.evaluation.space_trials import Trials
from gptailor.plan.plan import Plan
from gptailor.reporting.measure import Estimate
from tests.evaluation.test_trial import (
    CUTS,
    OBJECTIVES,
    SPACE,
    Say,
    outcomes,
    say,
    texts,
    trials_of,
)

__all__ = ["say", "texts"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")

FORWARD = OBJECTIVES[:-1]


def each(values: Sequence[float], counts: Sequence[int] | None = None) -> PerSample:
    return PerSample(tuple(values), tuple(counts or [1] * len(values)))


def drawn(count: int, lift: float, seed: int) -> tuple[PerSample, PerSample]:
    """Two plans' scores: the samples' common part is ten times a plan's own part."""
    chance = random.Random(seed)
    common = [chance.gauss(3, 1) for _ in range(count)]
    mine, theirs = ([c + chance.gauss(0, 0.1) for c in common] for _ in range(2))
    return each([value + lift for value in mine]), each(theirs)


# --------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize(
    ("t", "freedom", "below"),
    [(0.0, 5.0, 0.5), (2.353, 3.0, 0.05), (2.015, 5.0, 0.05), (-1.812, 10.0, 0.95)],
)
def test_probabilities_are_those_of_students_tables(t: float, freedom: float, below: float) -> None:
    assert probability(t, 1.0, freedom) == pytest.approx(below, abs=2e-3)


def test_a_difference_without_a_spread_has_probability_0_or_1() -> None:
    assert [probability(value, 0.0, 3.0) for value in (-1.0, 0.0, 1.0)] == [1.0, 0.5, 0.0]


def test_texts_have_equal_weight_whatever_their_length() -> None:
    pair, counts = [Estimate(1.0, 0.1), Estimate(-1.0, 0.1)], [4, 1000]
    assert below_together(pair, counts, [0.5, 0.5]) == pytest.approx(0.5)
    turned = below_together(pair[::-1], counts[::-1], [0.4, 0.6])
    assert below_together(pair, counts, [0.6, 0.4]) == turned
    assert below_together(pair, counts, [0.6, 0.4]) < below_together(pair, counts, [0.55, 0.45])


def test_an_infinite_error_is_a_tie() -> None:
    assert below_together([Estimate(1.0, math.inf)], [1], [1.0]) == 0.5


def test_a_score_is_that_of_its_samples_and_of_the_first_of_them() -> None:
    made = PerSample((1.0, 4.0, 2.0), (1, 2, 1)).score()
    assert made.each is not None
    assert made.each.score() == made
    assert made.each.score(2) == PerSample((1.0, 4.0), (1, 2)).score()
    grown = PerSample((1.0, 4.0, 2.0), (1, 2, 1), exponential=True).score()
    assert grown.value == math.exp(made.value)
    assert grown.stderr == grown.value * made.stderr
    assert grown.each is not None
    assert grown.each.score() == grown


# -------------------------------------------------------------------------------------- who loses


def test_equal_plans_are_rarely_stopped_and_worse_plans_soon() -> None:
    def given_up(lift: float) -> float:
        lost = 0
        for seed in range(400):
            mine, theirs = drawn(8, lift, seed)
            lost += Race(((theirs,),), (1.0,)).lost((mine,))
        return lost / 400

    assert given_up(0.0) == pytest.approx(HOPELESS, abs=0.03)
    assert given_up(-0.1) < 0.01
    assert given_up(0.3) > 0.95


def test_a_plan_that_leads_by_one_objective_continues() -> None:
    better, worse = drawn(16, 0.3, 0)[::-1]
    race = Race(((better, worse),), (1.0, 1.0))
    assert not race.lost((worse, better)), "it is the better one by the second"
    assert Race(((better, better),), (1.0, 1.0)).lost((worse, worse))
    assert Race(((worse,),), (-1.0,)).lost((better,)), "where more is better"
    assert not Race(((better,),), (-1.0,)).lost((worse,))


def test_a_race_is_lost_against_any_rival() -> None:
    better, worse = drawn(16, 0.3, 0)[::-1]
    assert Race(((worse,), (better,)), (1.0,)).lost((worse,))
    assert not Race(((worse,),), (1.0,)).lost((worse,)), "a tie"


def test_a_race_compares_at_least_four_samples() -> None:
    assert [race_counts(n) for n in (256, 9, 4)] == [(32, 128), (0, 4), (0, 0)]


# --------------------------------------------------------------------------------------- in trials


def rivals(trials: Trials, plan: Plan, samples: int) -> tuple[PerSample, ...]:
    [(_, result)] = trials.run([plan], samples, stage="bare")
    return tuple(item.each for item in result if isinstance(item, Score) and item.each is not None)


def scored(trials: Trials, plans: Sequence[Plan], race: Race | None) -> list[Outcomes]:
    results = dict(trials.run(plans, trials.full, stage="bare", race=race))
    return [results[number] for number in range(len(plans))]


def test_a_race_without_losers_has_exactly_the_scores_of_eval(say: Say) -> None:
    trials = trials_of(say(SPACE), *FORWARD, full=12)
    plans = [say(text) for text in CUTS]
    race = Race((), (1.0,) * len(FORWARD))
    assert scored(trials, plans, race) == outcomes(trials, plans, 12)


def test_a_lost_trial_has_the_scores_of_its_first_samples(say: Say) -> None:
    trials = trials_of(say(SPACE), *FORWARD[:2], full=12)
    plans = [say(text) for text in CUTS]
    (each_of,) = [rivals(trials, say(""), 12)]
    unbeatable = tuple(
        PerSample(
            tuple(s - 1000 * c for s, c in zip(one.sums, one.counts, strict=True)), one.counts
        )
        for one in each_of
    )
    result = scored(trials, plans, Race((unbeatable,), (1.0, 1.0)))
    assert {score.samples for of in result for score in of if isinstance(score, Score)} == {6}
    for mine, low in zip(result, outcomes(trials, plans, 6), strict=True):
        for one, other in zip(mine, low, strict=True):
            assert isinstance(one, Score)
            assert isinstance(other, Score)
            assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_race_saves_layers(say: Say, tmp_path: Path) -> None:
    trials = trials_of(say(SPACE), *FORWARD[:1], full=16)
    plans = [say(text) for text in CUTS]
    lost = Race((tuple(each([0.0] * 16, r.counts) for r in rivals(trials, say(""), 16)),), (1.0,))
    result = scored(trials, plans, lost)
    assert all(isinstance(one, Score) and one.samples == 8 for (one,) in result)
    assert all(
        one.samples == 16 for (one,) in scored(trials, plans, None) if isinstance(one, Score)
    )
