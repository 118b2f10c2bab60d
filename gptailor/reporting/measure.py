"""The measure of a loss: its unit, its direction, its width and its error."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, final

ScaleBy = Literal["base", "spread"]
AimDirection = Literal["minimize", "maximize"]

SURE = 2.0
"""The number of standard errors beyond which a difference is not chance."""

SHARES, SPREADS = "% of the base's score", "spreads of the starting plans' scores"
"""The units of losses by objectives that have no unit in common."""
POINTS = "points"
"""The unit of shares where the base scores 0: a hundredth of a score of 1."""

UNSIZED: Final = frozenset({"", "accuracy"})
"""Units of scores that are shown as shares of the base's score, not as differences."""


def finite_or_none(number: float) -> float | None:
    """Return the number, or None for infinity and NaN, which JSON lacks."""
    return number if math.isfinite(number) else None


@final
class Estimate(NamedTuple):
    """A number and its standard error, which is infinite if it is unknown."""

    value: float
    stderr: float

    @property
    def sure(self) -> bool:
        """Return whether the value is above 0 by more than chance."""
        return self.value > SURE * self.stderr

    @property
    def finite_error(self) -> float | None:
        """The standard error, or None if it is infinite, for JSON."""
        return finite_or_none(self.stderr)

    @property
    def reversed(self) -> "Estimate":
        """The difference in the other direction, without a negative zero."""
        return Estimate(0.0 - self.value, self.stderr)


def excess(sign: str, value: float | None, bound: float | None) -> float:
    """Return how far a value is beyond a bound, as a share of it; infinite if one is unknown.

    `sign` is `<=` or `>=`. A value within the bound has an excess of at most 0.
    """
    if value is None or bound is None:
        return math.inf
    return (value - bound if sign == "<=" else bound - value) / (abs(bound) or 1.0)


@final
@dataclass(frozen=True)
class LossMeasure:
    """The measure of the losses by one objective.

    A loss is the distance of a score from `reference` in the worse direction, in `width`s. By the
    `base`, the reference and the width are the base's score, so a loss is a share of it, or of 1
    where the base scores 0. By the
    `spread`, the reference is the best score of the starting plans, and the width is the distance
    between their best and worst scores.
    """

    direction: AimDirection
    width: float = 1.0
    reference: float = 0.0

    @classmethod
    def of_spread(cls, direction: AimDirection, starts: Sequence[float]) -> "LossMeasure":
        """Measure by the starting plans' scores; the spread of equal scores is 1."""
        finite = [value for value in starts if math.isfinite(value)]
        best = min if direction == "minimize" else max
        return cls(direction, spread_of(finite), best(finite, default=0.0))

    @property
    def per_score(self) -> float:
        """The loss for an increase of the score by 1; below 0 if more is better."""
        return (1.0 if self.direction == "minimize" else -1.0) / self.width

    def difference(self, value: float, other: float) -> float:
        """Return how much more one score loses than another."""
        lost = value - other if self.direction == "minimize" else other - value
        return lost / self.width

    def loss(self, value: float) -> float:
        """Return the loss of a score; NaN stays NaN."""
        return self.difference(value, self.reference)


def spread_of(scores: Iterable[float]) -> float:
    """Return the distance between the least and the largest finite score, or 1 if it is 0."""
    finite = [score for score in scores if math.isfinite(score)]
    return (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0


def shared_unit(units: Iterable[str]) -> str:
    """Return the unit of the mean of losses by several objectives; "" without a common unit."""
    several = {*units}
    return "" if len(several) != 1 or several & UNSIZED else several.pop()
