"""Scores compared: in one measure, as shares of the base's, and which no other one betters."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

ScaleBy = Literal["base", "spread"]


def normalised(
    values: Sequence[float], direction: str, scale: ScaleBy, reference: Sequence[float]
) -> list[float]:
    """Values of one objective, smaller being better and in the measure of the others.

    By the `base` (`reference` is its one score): the share of it that is lost, v / b - 1 where the
    objective is minimised and 1 - v / b where it is maximised. By the `spread` (`reference` are the
    starting plans' scores): (v - least) / (most - least); the spread of nothing is 1. NaN stays
    NaN. Raises `ValueError` for a base of 0, below it or not finite.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    if scale == "base":
        (base,) = reference
        if not 0 < base < np.inf:
            raise ValueError(f"a base's score of {base!r} is no measure for others")
        return [sign * (value / base - 1) for value in values]
    finite = [sign * value for value in reference if np.isfinite(value)]
    low = min(finite, default=0.0)
    width = (max(finite) - low if finite else 0.0) or 1.0
    return [(sign * value - low) / width for value in values]


def retained(value: float, direction: str, scale: ScaleBy, reference: Sequence[float]) -> float:
    """The share that is left: v / b of what is maximised, b / v of what is minimised.

    By the spread it is 1 for the best of the starting plans and 0 for the worst. An infinite loss
    leaves nothing.
    """
    if scale == "spread":
        return 1 - normalised([value], direction, scale, reference)[0]
    (base,) = reference
    if direction == "maximize":
        return value / base
    return base / value if value else np.inf


def front(values: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, " n"]:
    """The Pareto front of minimised values: rows that no other row betters.

    A row betters another if it is nowhere worse and somewhere better. Of equal rows the first
    stands for all; a row with NaN is never on the front and betters none.
    """
    valid = ~np.isnan(values).any(axis=1)
    mine, others = values[:, None], values[None]
    nowhere_worse = valid & (others <= mine).all(axis=2)
    better = nowhere_worse & (others < mine).any(axis=2)
    first = np.tril(nowhere_worse & (others == mine).all(axis=2), -1)
    kept: Bool[np.ndarray, " n"] = valid & ~(better | first).any(axis=1)
    return kept


def best(merits: Sequence[float]) -> int | None:
    """The number of the highest, the first of equal ones; None if none is a number."""
    found = [n for n, merit in enumerate(merits) if not math.isnan(merit)]
    return max(found, key=lambda n: (merits[n], -n), default=None)
