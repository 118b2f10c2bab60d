"""Racing: a trial that is surely worse than a known plan isn't scored on all its samples.

All plans see the same samples, so a trial is compared with each rival sample by sample; the
difference's error is far below that of either score. It is looked at after an eighth and after half
of the samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import TypeAlias, final

from torch import Tensor

from gptailor.evaluate.forward.evaluator import Evaluator, attempt
from gptailor.evaluate.live.stitch import Stitched
from gptailor.evaluate.objectives.base import Forward, race_counts
from gptailor.evaluate.outcome import (
    Difference,
    Failure,
    Outcome,
    PerSample,
    Score,
    paired_difference,
)

HOPELESS = 0.05
"""A trial that is better than a rival with less than this probability is given up."""


def below(value: float, variance: float, freedom: float) -> float:
    """The probability that what was measured so, with these degrees of freedom, is below 0.

    By Student's law, in Wallace's normal approximation (1959), which is right to three digits from
    3 degrees of freedom on. What has no variance is what it is, and 0 is a tie.
    """
    if not variance:
        return 0.5 if not value else float(value < 0)
    t, n = value / math.sqrt(variance), freedom
    z = (8 * n + 1) / (8 * n + 3) * math.sqrt(n * math.log1p(t * t / n))
    return NormalDist().cdf(-math.copysign(z, t))


def below_together(differences: Sequence[Difference], weights: Sequence[float]) -> float:
    """The probability that the weighted sum of independent differences is below 0.

    So several texts are several means, each with its own weight, however long they are. Degrees of
    freedom are those of Welch and Satterthwaite.
    """
    pairs = list(zip(differences, weights, strict=True))
    value = math.fsum(w * d.value for d, w in pairs)
    parts = [((w * d.stderr) ** 2, d.samples - 1) for d, w in pairs]
    variance = math.fsum(part for part, _ in parts)
    if not math.isfinite(variance):
        return 0.5
    spread = math.fsum(part * part / freedom for part, freedom in parts)
    return below(value, variance, variance**2 / spread if spread else 1.0)


Rival: TypeAlias = tuple[PerSample, ...]
"""A plan's scores sample by sample, one entry for each objective."""


@final
@dataclass(frozen=True)
class Race:
    """What trials run against.

    `weights` make the objectives' differences comparable: each is the worth of one unit of a score,
    positive where less is better and negative where more is.
    """

    rivals: tuple[Rival, ...]
    weights: tuple[float, ...]

    def lost(self, mine: Rival) -> bool:
        """Whether a rival is better: in the mean of all objectives surely, and in each probably."""
        return any(self._better(rival, mine) for rival in self.rivals)

    def _better(self, rival: Rival, mine: Rival) -> bool:
        found = [paired_difference(m, r) for m, r in zip(mine, rival, strict=True)]
        behind = all(w * one.value >= 0 for one, w in zip(found, self.weights, strict=True))
        return behind and below_together(found, self.weights) < HOPELESS


def raced(
    evaluator: Evaluator,
    live: Mapping[int, Stitched],
    objectives: Sequence[Forward],
    samples: int,
    race: Race,
) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    """The outcomes of plans that run against others: on all samples, or on those it took.

    All run their first samples, then those that are left the next ones: plans that begin alike
    share hidden states as ever.
    """
    works = [one.work(samples) for one in objectives]
    found: dict[int, list[list[Tensor]]] = {number: [[] for _ in works] for number in live}
    for part, count in enumerate((*race_counts(samples), samples)):
        if not count:
            continue
        left = list(found)
        of_part = [work.parts[part] for work in works]
        for at, result in evaluator.run_all([live[number] for number in left], of_part):
            number = left[at]
            if isinstance(result, Failure):
                del found[number]
                yield number, (result,) * len(objectives)
                continue
            for mine, more in zip(found[number], result, strict=True):
                mine.extend(more)
            outcomes = tuple(
                attempt(partial(one.score, mine))
                for one, mine in zip(objectives, found[number], strict=True)
            )
            failed = any(isinstance(one, Failure) for one in outcomes)
            if count == samples or failed or _lost(race, outcomes):
                del found[number]
                yield number, outcomes


def _lost(race: Race, outcomes: Sequence[Outcome]) -> bool:
    each = [one.each for one in outcomes if isinstance(one, Score)]
    known = tuple(one for one in each if one is not None)
    return len(known) == len(outcomes) and race.lost(known)
