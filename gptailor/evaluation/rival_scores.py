"""Compare a trial with known plans' scores, sample by sample. Never torch.

All plans see the same samples, so a trial is compared with each rival sample by sample. The
difference has a far smaller error than either score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias, final

from gptailor.evaluation.scores import PerSample, ScoreDifference, paired_difference

_RACE_SHARES = (1 / 8, 1 / 2)
"""The shares of its samples after which a trial may be given up."""
_RACE_LEAST = 4
"""The fewest samples from which the difference of two plans can be estimated."""


def race_counts(samples: int) -> tuple[int, ...]:
    """Return the numbers of samples after which a trial may be given up; 0: too few."""
    counts = (int(share * samples) for share in _RACE_SHARES)
    return tuple(count if count >= _RACE_LEAST else 0 for count in counts)


HOPELESS = 0.05
"""The probability of being better than a rival below which a trial is given up."""


def chance_below(value: float, variance: float, freedom: float) -> float:
    """Return the probability that the true value of a measured value is below 0.

    The variance has `freedom` degrees of freedom. The probability follows Student's law, in
    Wallace's normal approximation (1959), which is right to three digits from 3 degrees of freedom
    on. A value without variance is exact, and 0 is a tie.
    """
    if not variance:
        return 0.5 if not value else float(value < 0)
    t, n = value / math.sqrt(variance), freedom
    z = (8 * n + 1) / (8 * n + 3) * math.sqrt(n * math.log1p(t * t / n))
    return NormalDist().cdf(-math.copysign(z, t))


def below_together(differences: Sequence[ScoreDifference], weights: Sequence[float]) -> float:
    """Return the probability that the weighted sum of independent differences is below 0.

    Several texts are several means, each with its own weight, however long the texts are. Degrees
    of freedom are those of Welch and Satterthwaite.
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
    """The rivals of trials.

    `weights` make the objectives' differences comparable. A weight is the worth of one unit of a
    score, positive if less is better and negative if more is better.
    """

    rivals: tuple[Rival, ...]
    weights: tuple[float, ...]

    def lost(self, trial: Rival) -> bool:
        """Return whether a rival is better.

        A better rival is surely better in the weighted mean of all objectives, and probably better
        in each objective.
        """
        return any(self._better(rival, trial) for rival in self.rivals)

    def _better(self, rival: Rival, trial: Rival) -> bool:
        differences = [paired_difference(t, r) for t, r in zip(trial, rival, strict=True)]
        behind = all(w * d.value >= 0 for d, w in zip(differences, self.weights, strict=True))
        return behind and below_together(differences, self.weights) < HOPELESS
