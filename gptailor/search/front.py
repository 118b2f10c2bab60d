"""Which of several plans are worth keeping, and which of those to hand over."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def front(values: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, " n"]:
    """The Pareto front of minimised values: rows that no other row betters.

    A row betters another if it is nowhere worse and somewhere better. Of equal rows the first
    stands for all; a row with NaN is never on the front and betters none.
    """
    valid = ~np.isnan(values).any(axis=1)
    least = np.array([_bettered(values, valid, row) for row in range(len(values))], dtype=bool)
    kept: Bool[np.ndarray, " n"] = valid & ~least.reshape(len(values))
    return kept


def best(retained: Sequence[Sequence[float]], prefer: int | None = None) -> int | None:
    """The row whose worst share is the highest, or whose share of objective `prefer` is.

    Ties go to the row with the highest share on the whole, then to the first. Rows with NaN never
    win; None if there is no other.
    """
    found = [n for n, row in enumerate(retained) if not np.isnan(row).any()]
    if not found:
        return None
    return max(found, key=lambda n: (_worth(retained[n], prefer), sum(retained[n]), -n))


def _worth(row: Sequence[float], prefer: int | None) -> float:
    return min(row) if prefer is None else row[prefer]


def _bettered(values: Float[np.ndarray, "n m"], valid: Bool[np.ndarray, " n"], row: int) -> bool:
    """Whether another row betters this one, or comes first and is equal to it."""
    mine = values[row]
    nowhere_worse = valid & (values <= mine).all(axis=1)
    better = nowhere_worse & (values < mine).any(axis=1)
    same = nowhere_worse & (values == mine).all(axis=1)
    return bool(better.any() or same[:row].any())
