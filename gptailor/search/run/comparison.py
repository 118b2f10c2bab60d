"""Plans compared by several objectives: `Comparison`, the one mean of losses."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

from gptailor.evaluate.scores import PerSample, paired_difference
from gptailor.report.measure import SHARES, SPREADS, Estimate, LossMeasure, shared_unit, spread_of
from gptailor.report.summary import Aim
from gptailor.search.run.scores import PerObjective


@final
class Scores(NamedTuple):
    """A plan's scores by each objective: values, standard errors, and what each sample gave."""

    values: Sequence[float]
    stderrs: Sequence[float]
    each: PerObjective = ()


@final
@dataclass(frozen=True)
class Comparison:
    """The mean of losses by those of several objectives that have these `numbers`.

    `widths` hold what counts as 1 of each objective's scores: 1 where all are in one `unit`, the
    base's score where losses are shares of it ("" is their unit), else the spread of the starting
    plans'. `samples` are equal for objectives that are measured on the same samples, whose errors
    go together; without them each objective has its own.
    """

    aims: tuple[Aim, ...]
    numbers: tuple[int, ...]
    widths: tuple[float, ...]
    samples: tuple[Hashable, ...] = ()
    unit: str = ""

    @property
    def in_percent(self) -> "Comparison":
        """The same, shares of the base's score being counted in percent."""
        if self.unit:
            return self
        return replace(self, widths=tuple(width / 100 for width in self.widths), unit=SHARES)

    def gain(self, mine: Scores, theirs: Scores) -> Estimate:
        """Return how much better the first scores are."""
        return self.loss(mine, theirs).reversed

    def loss(self, mine: Scores, theirs: Scores) -> Estimate:
        """Return how much worse the first scores are, sample by sample where both have samples."""
        total, variance = 0.0, 0.0
        groups = self.samples or range(len(self.aims))
        for group in dict.fromkeys(groups[i] for i in self.numbers):
            moves: list[list[float]] = []
            for i in (i for i in self.numbers if groups[i] == group):
                measure = LossMeasure(self.aims[i].direction, self.widths[i])
                a, b = _each(mine, i), _each(theirs, i)
                if a is None or b is None or not (a.sums and b.sums):
                    total += measure.difference(mine.values[i], theirs.values[i])
                    errors = (mine.stderrs[i], theirs.stderrs[i])
                    variance += sum((error / measure.width) ** 2 for error in errors)
                    continue
                paired = paired_difference(a, b)
                total += measure.difference(paired.value, 0.0)
                if math.isinf(paired.stderr):
                    variance = math.inf
                else:
                    moves.append([measure.difference(one, 0.0) for one in _moves(a, b)])
            variance += _variance(moves)
        count = len(self.numbers)
        return Estimate(total / count, math.sqrt(variance) / count)


def comparison_of(
    aims: tuple[Aim, ...],
    numbers: Sequence[int],
    base: Sequence[float] | None,
    spreads: Sequence[Sequence[float]],
    samples: Sequence[Hashable] = (),
) -> Comparison:
    """Return how plans are compared by some objectives.

    `base` are the base's scores, `spreads` the starting plans' by each objective.
    """
    unit = loss_unit([aims[number] for number in numbers])
    if unit == SHARES and base is None:
        unit = SPREADS
    if unit not in (SHARES, SPREADS):
        widths = [1.0] * len(aims)
    else:
        widths = [
            abs(base[number]) or 1.0
            if unit == SHARES and aim.scale == "base" and base is not None
            else spread_of(spreads[number])
            for number, aim in enumerate(aims)
        ]
    shown = "" if unit == SHARES else unit
    return Comparison(aims, tuple(numbers), tuple(widths), tuple(samples), shown)


def loss_unit(aims: Sequence[Aim]) -> str:
    """Return the unit of the mean loss by several objectives."""
    if unit := shared_unit(aim.unit for aim in aims):
        return unit
    return SHARES if all(aim.scale == "base" for aim in aims) else SPREADS


def _each(of: Scores, number: int) -> PerSample | None:
    return of.each[number] if number < len(of.each) else None


def _moves(a: PerSample, b: PerSample) -> list[float]:
    """Return how much each sample moves the difference."""
    n = min(len(a.sums), len(b.sums))
    first = (PerSample(one.sums[:n], one.counts[:n], one.exponential) for one in (a, b))
    return [u - v for u, v in zip(*(one.influences() for one in first), strict=True)]


def _variance(moves: Sequence[Sequence[float]]) -> float:
    """Return that of the sum of differences on the same samples, else of each by itself."""
    if len({len(one) for one in moves}) > 1:
        return sum(_variance([one]) for one in moves)
    sums = [math.fsum(column) for column in zip(*moves, strict=True)]
    return len(sums) / (len(sums) - 1) * math.fsum(s * s for s in sums) if len(sums) > 1 else 0.0
