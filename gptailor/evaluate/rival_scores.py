"""What a trial runs against: known plans' scores, sample by sample. Never torch.

All plans see the same samples, so a trial is compared with each rival sample by sample; the
difference's error is far below that of either score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias, final

from gptailor.evaluate.scores import PerSample, ScoreDifference, paired_difference

_RACE_SHARES = (1 / 8, 1 / 2)
"""The shares of its samples after which a trial may be given up."""
_RACE_LEAST = 4
"""The fewest samples that say how far two plans differ."""


def race_counts(samples: int) -> tuple[int, ...]:
    """How many of so many samples are scored before a trial may be given up; 0: too few."""
    found = (int(share * samples) for share in _RACE_SHARES)
    return tuple(count if count >= _RACE_LEAST else 0 for count in found)


HOPELESS = 0.05
"""A trial that is better than a rival with less than this probability is given up."""


def chance_below(value: float, variance: float, freedom: float) -> float:
    """The probability that what was measured so, with these degrees of freedom, is below 0.

    By Student's law, in Wallace's normal approximation (1959), which is right to three digits from
    3 degrees of freedom on. What has no variance is what it is, and 0 is a tie.
    """
    if not variance:
        return 0.5 if not value else float(value < 0)
    t, n = value / math.sqrt(variance), freedom
    z = (8 * n + 1) / (8 * n + 3) * math.sqrt(n * math.log1p(t * t / n))
    return NormalDist().cdf(-math.copysign(z, t))


def below_together(differences: Sequence[ScoreDifference], weights: Sequence[float]) -> float:
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
    return chance_below(value, variance, variance**2 / spread if spread else 1.0)


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
