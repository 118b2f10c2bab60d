"""Genes by name: what each choice of an open plan is called, what it may be, and when it counts."""

import math
from dataclasses import dataclass
from typing import TypeAlias, final

from gptailor.search.space.condition import Condition

GenePath: TypeAlias = tuple[str | int, ...]
"""Where a choice stands: whose it is, and its place there."""

LOG = 100
"""An interval above 0 whose ends are that many times apart is searched by its logarithm."""
DIGITS = 4
"""Digits of a real: of the interval's width, or of the number where it goes by its logarithm."""


@final
@dataclass(frozen=True)
class Bit:
    """Yes or no. `group` is the number of the set of which an exact count is on."""

    name: str
    kind: str
    at: int
    when: Condition
    default: bool = False
    group: int = -1


@final
@dataclass(frozen=True)
class Pick:
    """One of several options."""

    name: str
    kind: str
    at: int
    when: Condition
    options: tuple[object, ...]
    labels: tuple[str, ...]
    default: int = 0


@final
@dataclass(frozen=True)
class Real:
    """A number of an interval, as a share of the way through it."""

    name: str
    kind: str
    at: int
    when: Condition
    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether equal steps are equal ratios."""
        return self.low > 0 and self.high >= LOG * self.low

    def value(self, share: float) -> float:
        """The number there, with few digits and never outside the interval."""
        share = min(max(float(share), 0.0), 1.0)
        if self.log:
            power = math.log(self.low) * (1 - share) + math.log(self.high) * share
            number = float(f"{math.exp(power):.{DIGITS}g}")
        else:
            width = self.high - self.low
            number = self.low * (1 - share) + self.high * share
            if math.isfinite(width) and width > 0:
                number = round(number, DIGITS - math.ceil(math.log10(width)))
        return min(max(number, self.low), self.high)

    def share(self, value: float) -> float:
        """How far through the interval a number is."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max((math.log(value) - low) / (high - low), 0.0), 1.0)
        half = self.high / 2 - self.low / 2  # the width itself may overflow
        return min(max((value / 2 - self.low / 2) / half, 0.0), 1.0) if half > 0 else 0.0


Gene: TypeAlias = Bit | Pick | Real
