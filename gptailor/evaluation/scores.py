"""The result of an objective on a plan: a score with its error, or a failure. Never torch.

All plans see the same samples, so two plans are compared sample by sample: the difference has a far
smaller error than either score. In a race a trial is so compared with known plans.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, final

from gptailor.plan.output_size import OutputSize
from gptailor.reporting.measure import AimDirection, Estimate


@final
class NotANumberError(ValueError):
    """A score that would be NaN."""


@final
@dataclass(frozen=True)
class PerSample:
    """The terms of a score, sample by sample: Σ sums / Σ counts, or e to that.

    The samples are in the order in which fidelities take them. So plans are compared sample by
    sample, and a lower fidelity has the first samples.
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]
    exponential: bool = False

    def score(self, samples: int | None = None) -> "Score":
        """Return the score of the first samples, or of all.

        The error is the delta method's: √(n / (n - 1) · Σ (s_i - R c_i)²) / Σ c_i, times the value
        of an exponential. Sums are exact and rounded once, so the samples' order changes nothing.
        """
        used = PerSample(self.sums[:samples], self.counts[:samples], self.exponential)
        n, total = len(used.sums), sum(used.counts)
        value, stderr = math.fsum(used.sums) / total, math.inf
        if n > 1 and not math.isinf(value):
            residuals = (s - value * c for s, c in zip(used.sums, used.counts, strict=True))
            spread = math.fsum(residual * residual for residual in residuals)
            stderr = math.sqrt(n / (n - 1) * spread) / total
        if self.exponential:
            try:
                value = math.exp(value)
                stderr = stderr * value if math.isfinite(stderr) else math.inf
            except OverflowError:
                value = stderr = math.inf
        return Score(value, stderr, n, used)

    def influences(self) -> list[float]:
        """Return how much each sample moves the value: (s_i - R c_i) / Σ c.

        An exponential score multiplies that by its value.
        """
        total = sum(self.counts)
        mean_of_all = math.fsum(self.sums) / total
        scale = (self.score().value if self.exponential else 1.0) / total
        pairs = zip(self.sums, self.counts, strict=True)
        return [scale * (s - mean_of_all * c) for s, c in pairs]


@final
@dataclass(frozen=True)
class Score:
    """A value with its standard error over samples; an unknown error is infinite.

    `each` has the terms of a score that is a mean of samples; equal scores may differ there. Raises
    NotANumberError for a value that is NaN: that is a failure, never a score.
    """

    value: float
    stderr: float
    samples: int
    each: PerSample | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if math.isnan(self.value) or math.isnan(self.stderr):
            raise NotANumberError("a score must be a number, not NaN")


def mean(values: Sequence[float]) -> Score:
    """Return the mean of the samples' values, with the standard error s / √n, s with n - 1."""
    return PerSample(tuple(values), (1,) * len(values)).score()


def paired_difference(a: PerSample, b: PerSample, times: float = 1.0) -> Estimate:
    """Return the first score minus `times` the second, over the first samples that both have.

    An effect of a sample on both scores cancels. The error is √(n / (n - 1) · Σ (u_i - t v_i)²) for
    the samples' influences u and v on the two values. It is infinite for one sample, and for a
    value that isn't finite. Raises ValueError if the scores have no sample in common.
    """
    n = min(len(a.sums), len(b.sums))
    if n == 0:
        raise ValueError("two scores without samples have no difference")
    a, b = (PerSample(score.sums[:n], score.counts[:n], score.exponential) for score in (a, b))
    value = a.score().value - times * b.score().value
    if n == 1 or not math.isfinite(value):
        return Estimate(value, math.inf)
    pairs = zip(a.influences(), b.influences(), strict=True)
    spread = sum_of_squares(u - times * v for u, v in pairs)
    return Estimate(value, math.sqrt(n / (n - 1) * spread))


def sum_of_squares(numbers: Iterable[float]) -> float:
    """Return the sum of squares: infinite where it isn't a finite number, and never an error."""
    try:
        total = math.fsum(number * number for number in numbers)
    except OverflowError:  # of a partial sum
        return math.inf
    return total if math.isfinite(total) else math.inf


@final
@dataclass(frozen=True)
class Failure:
    """The reason why a plan has no score: too little memory, NaN, or an exception.

    A "search" failure is an outcome that a search can't use, for the message's reason.
    """

    reason: Literal["memory", "nan", "error", "search"]
    message: str

    def __str__(self) -> str:
        return self.message if self.reason == "search" else f"{self.reason}: {self.message}"


Outcome: TypeAlias = Score | Failure
Outcomes: TypeAlias = tuple[Outcome, ...]
"""A score or a failure for each objective."""


@final
@dataclass(frozen=True)
class Result:
    """The result of an objective on a target: a score, or a failure.

    `retained` is the remaining share of the base's score; None if a share has no meaning.
    `difference` is the score minus the score of the target `against`, sample by sample. It is None
    if the two have no samples in common, for the reason `unpaired`.
    """

    target: str
    objective: str
    direction: Literal["minimize", "maximize"]
    outcome: Outcome
    retained: float | None = None
    difference: Estimate | None = None
    against: str = ""
    unpaired: str = ""


@final
@dataclass(frozen=True)
class Speed:
    """Tokens a second: of a prompt, and of an answer generated token by token."""

    prefill: float
    decoding: float


@final
@dataclass(frozen=True)
class TargetSize:
    """The size of an evaluated target, its speed, and the base's speed.

    A speed of None could not be measured.
    """

    target: str
    size: OutputSize
    speed: Speed | None = None
    base_speed: Speed | None = None

    @property
    def counts(self) -> dict[str, int | None]:
        """The layers, parameters and KV cache, by their names in JSON and CSV."""
        return {
            "layers": self.size.layers,
            "parameters": self.size.parameters,
            "kv_bytes": self.size.kv_cache,
        }

    def record(self) -> dict[str, Any]:
        """Return the JSON of an evaluation's target."""
        speed, base_speed = (each and asdict(each) for each in (self.speed, self.base_speed))
        return {"target": self.target, **self.counts, "speed": speed, "base_speed": base_speed}


def retained_score(score: Outcome, base: Outcome | None, direction: AimDirection) -> float | None:
    """Return the share of the base's score: score / base, or base / score if less is better.

    None unless both are positive: a margin may be negative, the base's own divergence is 0.
    """
    if not isinstance(score, Score) or not isinstance(base, Score):
        return None
    value, base_value = score.value, base.value
    if base_value <= 0 or value < 0 or not (math.isfinite(value) and math.isfinite(base_value)):
        return None
    if direction == "minimize":
        value, base_value = base_value, value
    share = value / base_value if base_value else math.inf
    return share if math.isfinite(share) else None


# --------------------------------------------------------------------------------------- races

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


def below_together(
    differences: Sequence[Estimate], samples: Sequence[int], weights: Sequence[float]
) -> float:
    """Return the probability that the weighted sum of independent differences is below 0.

    A difference is over its number of `samples`. Several texts are several means, each with its own
    weight, however long the texts are. Degrees of freedom are by Welch and Satterthwaite.
    """
    weighted = list(zip(differences, samples, weights, strict=True))
    value = math.fsum(w * d.value for d, _, w in weighted)
    parts = [(sum_of_squares((w * d.stderr,)), n - 1) for d, n, w in weighted]
    variance = math.fsum(part for part, _ in parts)
    if not math.isfinite(variance):
        return 0.5
    spread = math.fsum(part * part / freedom for part, freedom in parts)
    return chance_below(value, variance, variance * variance / spread if spread else 1.0)


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
        samples = [min(len(t.sums), len(r.sums)) for t, r in zip(trial, rival, strict=True)]
        return behind and below_together(differences, samples, self.weights) < HOPELESS
