"""Several objectives as one fitness, and values as shares of a reference. Everything minimises."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

RHO = 0.05
"""How much of the weighted sum is added, so that no objective is given away for nothing."""

ScaleBy = Literal["base", "spread"]


def scalarise(
    values: Float[Array | np.ndarray, "*n m"], weights: Float[Array | np.ndarray, " m"]
) -> Float[Array, "*n"]:
    """max_j w_j v_j + RHO Σ_j w_j v_j: the augmented Chebyshev norm of ParEGO (Knowles, 2006).

    Values are minimised and of one scale. What is NaN or infinite in one objective is NaN.
    """
    weighted = jnp.asarray(values) * jnp.asarray(weights)
    fitness = jnp.max(weighted, axis=-1) + RHO * jnp.sum(weighted, axis=-1)
    return jnp.where(jnp.all(jnp.isfinite(values), axis=-1), fitness, jnp.nan)


def draw_weights(key: Array, objectives: int) -> Float[Array, " m"]:
    """A point of the simplex, every one alike; all of it where there is one objective."""
    if objectives == 1:
        return jnp.ones(1)
    return jax.random.dirichlet(key, jnp.ones(objectives))


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
    low, width = _spread([sign * value for value in reference])
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


def _spread(reference: Sequence[float]) -> tuple[float, float]:
    """The least of some values, and how far the most is from it."""
    finite = [value for value in reference if np.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    return min(finite), (max(finite) - min(finite)) or 1.0


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
