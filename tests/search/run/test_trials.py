"""The Pareto front, and the plan that is handed over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.search.run.trials import best, front

NAN = float("nan")


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, dtype=float)


def test_what_is_bettered_leaves() -> None:
    found = front(rows((1, 3), (2, 2), (3, 1), (2, 3), (3, 3)))
    assert found.tolist() == [True, True, True, False, False]


def test_of_equal_rows_the_first_stays() -> None:
    assert front(rows((1, 1), (1, 1), (0, 2), (1, 1))).tolist() == [True, False, True, False]


def test_a_failure_is_on_no_front_and_betters_nobody() -> None:
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


@pytest.mark.parametrize(
    ("shares", "prefer", "wins"),
    [
        ([(0.9, 0.5), (0.7, 0.6), (0.95, 0.1)], None, 1),
        ([(0.9, 0.5), (0.7, 0.6), (0.95, 0.1)], 0, 2),
        ([(0.9, 0.5), (0.7, 0.6), (0.95, 0.1)], 1, 1),
        ([(0.5, 0.5), (0.5, 0.9)], None, 1),
        ([(0.5, 0.5), (0.5, 0.5)], None, 0),
        ([(NAN, 1.0), (0.1, 0.1)], None, 1),
        ([(NAN, 1.0)], 1, None),
        ([], None, None),
    ],
)
def test_the_worst_share_decides(
    shares: list[tuple[float, ...]], prefer: int | None, wins: int | None
) -> None:
    assert best(shares, prefer) == wins
