"""The measure of a loss: its unit, which direction is worse, what counts as 1, and its error."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self, final

ScaleBy = Literal["base", "spread"]
AimDirection = Literal["minimize", "maximize"]

SURE = 2.0
"""Standard errors beyond which a difference is no chance."""

SHARES, SPREADS = "% of the base's score", "spreads of the starting plans' scores"
"""The units of losses by objectives that have no unit in common."""

_UNSIZED: Final = frozenset({"", "accuracy"})
"""Units of scores whose differences say little: the share of the base's score is shown."""


@final
class Estimate(NamedTuple):
    """A number and its standard error, which is infinite where it is unknown."""

    value: float
    stderr: float

    @property
    def sure(self) -> bool:
        """Return whether the value is above 0 by more than chance."""
        return self.value > SURE * self.stderr

    @property
    def finite_error(self) -> float | None:
        """The standard error as JSON has it, which has no infinity."""
        return self.stderr if math.isfinite(self.stderr) else None

    @property
    def reversed(self) -> "Estimate":
        """The difference the other way round, without a negative zero."""
        return Estimate(0.0 - self.value, self.stderr)


@final
@dataclass(frozen=True)
class LossMeasure:
    """The measure of the losses by one objective.

    A loss is how much worse a score is than `reference`, in `width`s. By the `base`, that is the
    base's score, and a loss is a share of it. By the `spread`, it is the best score of the starting
    plans, and the width is what lies between their best and their worst.
    """

    direction: AimDirection
    width: float = 1.0
    reference: float = 0.0
    by: ScaleBy = "base"

    @classmethod
    def of_base(cls, direction: AimDirection, base: float) -> Self:
        """Measure by the base's score. Raises ValueError if it is not finite and above 0."""
        if not 0 < base < math.inf:
            raise ValueError(f"a base's score of {base!r} is no measure for others")
        return cls(direction, base, base)

    @classmethod
    def of_spread(cls, direction: AimDirection, starts: Sequence[float]) -> Self:
        """Measure by the starting plans' scores; the spread of equal scores is 1."""
        finite = [value for value in starts if math.isfinite(value)]
        best = min if direction == "minimize" else max
        return cls(direction, spread_of(finite), best(finite, default=0.0), "spread")

    @property
    def per_score(self) -> float:
        """The loss of one more in the score; below 0 where more is better."""
        return (1.0 if self.direction == "minimize" else -1.0) / self.width

    def difference(self, value: float, other: float) -> float:
        """Return how much more one score loses than another."""
        lost = value - other if self.direction == "minimize" else other - value
        return lost / self.width

    def loss(self, value: float) -> float:
        """Return what a score loses; NaN stays NaN."""
        return self.difference(value, self.reference)

    def retained(self, value: float) -> float:
        """Return the share of the reference that is left; an infinite loss leaves nothing."""
        if self.by == "spread":
            return 1 - self.loss(value)
        if self.direction == "maximize":
            return value / self.reference
        return self.reference / value if value else math.inf


def spread_of(scores: Iterable[float]) -> float:
    """Return what lies between the least and the largest finite score; 1 if that is nothing."""
    finite = [score for score in scores if math.isfinite(score)]
    return (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0


def shared_unit(units: Iterable[str]) -> str:
    """Return the unit in which losses by several objectives have a mean; "" without such a unit."""
    several = {*units}
    return "" if len(several) != 1 or several & _UNSIZED else several.pop()


@final
@dataclass(frozen=True)
class BesideBase:
    """A score beside the base's: the `share` of it, or else the `loss` in a `unit`."""

    share: float | None = None
    loss: float = 0.0
    unit: str = ""

    @classmethod
    def of(cls, direction: AimDirection, unit: str, value: float, base: float) -> Self | None:
        """Return a share of what is counted, a loss of all else; None where that is nothing."""
        if direction == "maximize" and unit in _UNSIZED:
            return cls(value / base) if base else None
        return cls(None, LossMeasure(direction).difference(value, base), unit)
