"""What an objective says of a plan: a number, how sure it is, of how many samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Score:
    """A value with its standard error over samples; the error is infinite where one can't tell.

    Raises `ValueError` for a value that is no number: that is a failure, never a score.
    """

    value: float
    stderr: float
    samples: int

    def __post_init__(self) -> None:
        if math.isnan(self.value) or math.isnan(self.stderr):
            raise ValueError("a score is a number, and NaN is none")


def mean(values: Sequence[float]) -> Score:
    """The mean of the samples' values, and its standard error: s / √n, s with n - 1."""
    return ratio(values, [1] * len(values))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Score:
    """Σ sums / Σ counts, where each sample has a sum over its own count of things.

    The error is the delta method's: √(n / (n - 1) · Σ (s_i - R c_i)²) / Σ c_i. Sums are exact and
    rounded once, so that the samples' order changes nothing.
    """
    samples, total = len(sums), sum(counts)
    value = math.fsum(sums) / total
    if samples < 2 or math.isinf(value):
        return Score(value, math.inf, samples)
    residuals = (s - value * c for s, c in zip(sums, counts, strict=True))
    spread = math.fsum(residual * residual for residual in residuals)
    return Score(value, math.sqrt(samples / (samples - 1) * spread) / total, samples)


def exponential(score: Score) -> Score:
    """e to the score, its error by the delta method: e^value · stderr."""
    try:
        value = math.exp(score.value)
    except OverflowError:
        return Score(math.inf, math.inf, score.samples)
    return Score(value, value * score.stderr, score.samples)
