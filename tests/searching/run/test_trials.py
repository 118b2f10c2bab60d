"""The Pareto front, and the plan that is handed over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.searching.run.origin import StrategyPlan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.scores import front
from gptailor.searching.run.trials import Ledger, Trial, TrialRequest
from gptailor.searching.space.genome import Genome

NAN = float("nan")


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, dtype=float)


def test_dominated_rows_leave_the_front() -> None:
    result = front(rows((1, 3), (2, 2), (3, 1), (2, 3), (3, 3)))
    assert result.tolist() == [True, True, True, False, False]


def test_the_first_of_equal_rows_stays_on_the_front() -> None:
    assert front(rows((1, 1), (1, 1), (0, 2), (1, 1))).tolist() == [True, False, True, False]


def test_a_failure_is_never_on_the_front() -> None:
    assert front(rows((NAN, 0), (NAN, NAN), (5, 5))).tolist() == [False, False, True]
    assert front(rows((NAN, 0))).tolist() == [False]
    assert front(np.zeros((0, 2))).tolist() == []


def test_infinite_losses_are_values() -> None:
    assert front(rows((np.inf, 0), (1, 1), (np.inf, np.inf))).tolist() == [True, True, False]


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, NAN])] * 3), max_size=12))
def test_every_row_off_the_front_has_one_on_it_that_is_as_good(drawn: list[tuple]) -> None:
    values = np.array(drawn, dtype=float).reshape(len(drawn), 3)
    kept = front(values)
    for row, on in zip(values, kept, strict=True):
        if np.isnan(row).any():
            assert not on
        else:
            as_good = (values[kept] <= row).all(axis=1)
            assert as_good.any()
            assert not on or as_good.sum() == 1


def told_trial(number: int, values: tuple[float, ...]) -> Trial:
    genome = Genome(np.zeros(0, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.float32))
    request = TrialRequest(
        "search", number, 0, StrategyPlan(strategy="surrogate"), genome, 64, "bare", 0
    )
    return Trial(number, request, f"plan {number}", 1.0, values, (0.1,) * len(values))


@pytest.mark.parametrize(
    ("units", "prefer", "wins"),
    [
        (("nats", "nats"), None, 2),  # 0.4, 0.7 and 0.25 nats lost on the mean
        (("nats", "nats"), 0, 1),
        (("nats", "nats"), 1, 2),
        (("nats", "accuracy"), None, 0),  # in shares of the base's scores
    ],
)
def test_the_preferred_objective_or_the_mean_decides(
    units: tuple[str, str], prefer: int | None, wins: int
) -> None:
    counted = units[1] == "accuracy"
    aims = (
        Aim("nll", "minimize", "base", unit="nats"),
        Aim("other", "maximize" if counted else "minimize", "base", unit=units[1]),
    )
    ledger = Ledger(aims, 64, prefer)
    ledger.references[64] = (2.0, 0.8 if counted else 3.0)
    for number, (first, lost) in enumerate([(2.2, 0.6), (2.1, 1.3), (2.4, 0.1)]):
        other = (0.78, 0.5, 0.7)[number] if counted else 3.0 + lost
        ledger.add(told_trial(number, (first, other)))
    result = ledger.best()
    assert result is not None
    assert result.number == wins
    assert ledger.ranked(ledger.trials, 1) == [result]
    assert len(ledger.ranked(ledger.trials, 9)) == 3
