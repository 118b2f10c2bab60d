"""Plans compared by several objectives: `Comparison`, the one mean of losses."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

from gptailor.evaluation.scores import PerSample, paired_difference
from gptailor.reporting.measure import (
    SHARES,
    SPREADS,
    Estimate,
    LossMeasure,
    shared_unit,
)
from gptailor.searching.run.records import Aim
from gptailor.searching.run.scores import Scores


@final
@dataclass(frozen=True)
class Comparison:
    """The mean of losses by those of several objectives that have these `numbers`.

    `widths` hold the unit of each objective's scores: 1 where all are in one `unit`, a hundredth of
    the base's score where losses are shares of it, else the spread of the starting plans'.
    `samples` are equal for objectives that are measured on the same samples, whose errors go
    together; without them each objective has its own.
    """

    aims: tuple[Aim, ...]
    numbers: tuple[int, ...]
    widths: tuple[float, ...]
    samples: tuple[Hashable, ...] = ()
    unit: str = ""

    def gain(self, first: Scores, second: Scores) -> Estimate:
        """Return how much better the first scores are."""
        return self.loss(first, second).reversed

    def loss(self, first: Scores, second: Scores) -> Estimate:
        """Return how much worse the first scores are, sample by sample where both have samples."""
        total, variance = 0.0, 0.0
        groups = self.samples or range(len(self.aims))
        for group in dict.fromkeys(groups[i] for i in self.numbers):
            moves: list[list[float]] = []
            for i in (i for i in self.numbers if groups[i] == group):
                measure = LossMeasure(self.aims[i].direction, self.widths[i])
                a, b = _each(first, i), _each(second, i)
                if a is None or b is None or not (a.sums and b.sums):
                    total += measure.difference(first.values[i], second.values[i])
                    errors = (first.stderrs[i], second.stderrs[i])
                    variance += sum((error / measure.width) ** 2 for error in errors)
                    continue
                paired = paired_difference(a, b)
                total += measure.difference(paired.value, 0.0)
                if math.isinf(paired.stderr):
                    variance = math.inf
                else:
                    moves.append([measure.difference(move, 0.0) for move in _moves(a, b)])
            variance += _variance(moves)
        count = len(self.numbers)
        return Estimate(total / count, math.sqrt(variance) / count)


def loss_unit(aims: Sequence[Aim]) -> str:
    """Return the unit of the mean loss by several objectives."""
    if unit := shared_unit(aim.unit for aim in aims):
        return unit
    return SHARES if all(aim.scale == "base" for aim in aims) else SPREADS


def _each(of: Scores, number: int) -> PerSample | None:
    return of.per_sample[number] if of.per_sample else None


def _moves(a: PerSample, b: PerSample) -> list[float]:
    """Return how much each sample moves the difference."""
    n = min(len(a.sums), len(b.sums))
    common = (PerSample(each.sums[:n], each.counts[:n], each.exponential) for each in (a, b))
    return [u - v for u, v in zip(*(each.influences() for each in common), strict=True)]


def _variance(moves: Sequence[Sequence[float]]) -> float:
    """Return the variance of the sum of differences on equal samples, else of each by itself."""
    if len({len(row) for row in moves}) > 1:
        return sum(_variance([row]) for row in moves)
    sums = [math.fsum(column) for column in zip(*moves, strict=True)]
    return len(sums) / (len(sums) - 1) * math.fsum(s * s for s in sums) if len(sums) > 1 else 0.0
