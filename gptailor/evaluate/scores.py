"""What an objective says of a plan: a number, how sure it is, of how many samples."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

from gptailor.plan.output_size import OutputSize
from gptailor.report.measure import AimDirection, LossMeasure


@final
class NotANumberError(ValueError):
    """A score would be NaN."""


@final
@dataclass(frozen=True)
class PerSample:
    """What a score is made of, sample by sample: Σ sums / Σ counts, or e to that.

    The samples stand in the order in which fidelities take them, so that plans are compared sample
    by sample, and the first ones are a lower fidelity's.
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]
    exponential: bool = False

    def score(self, samples: int | None = None) -> "Score":
        """The score of the first samples, or of all."""
        found = ratio(self.sums[:samples], self.counts[:samples])
        return exponential(found) if self.exponential else found

    def influences(self) -> list[float]:
        """How much each sample moves the value: (s_i - R c_i) / Σ c, times the value if e to it."""
        total = sum(self.counts)
        mean_of_all = math.fsum(self.sums) / total
        scale = (self.score().value if self.exponential else 1.0) / total
        pairs = zip(self.sums, self.counts, strict=True)
        return [scale * (s - mean_of_all * c) for s, c in pairs]


@final
@dataclass(frozen=True)
class Score:
    """A value with its standard error over samples; the error is infinite where one can't tell.

    `each` is what it is made of, where it is a mean of samples; equal scores may differ there.
    Raises NotANumberError for a value that is NaN: that is a failure, never a score.
    """

    value: float
    stderr: float
    samples: int
    each: PerSample | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if math.isnan(self.value) or math.isnan(self.stderr):
            raise NotANumberError("a score is a number, and NaN is none")


def mean(values: Sequence[float]) -> Score:
    """The mean of the samples' values, and its standard error: s / √n, s with n - 1."""
    return ratio(values, [1] * len(values))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Score:
    """Σ sums / Σ counts, where each sample has a sum over its own count of things.

    The error is the delta method's: √(n / (n - 1) · Σ (s_i - R c_i)²) / Σ c_i. Sums are exact and
    rounded once, so that the samples' order changes nothing.
    """
    samples, total, each = len(sums), sum(counts), PerSample(tuple(sums), tuple(counts))
    value = math.fsum(sums) / total
    if samples < 2 or math.isinf(value):
        return Score(value, math.inf, samples, each)
    residuals = (s - value * c for s, c in zip(sums, counts, strict=True))
    spread = math.fsum(residual * residual for residual in residuals)
    return Score(value, math.sqrt(samples / (samples - 1) * spread) / total, samples, each)


def exponential(score: Score) -> Score:
    """e to the score, its error by the delta method: e^value · stderr."""
    each = None if score.each is None else replace(score.each, exponential=True)
    try:
        value = math.exp(score.value)
    except OverflowError:
        return Score(math.inf, math.inf, score.samples, each)
    return Score(value, value * score.stderr, score.samples, each)


@final
@dataclass(frozen=True)
class ScoreDifference:
    """How much larger one score is than another, its standard error, and over how many samples."""

    value: float
    stderr: float
    samples: int


def paired_difference(a: PerSample, b: PerSample) -> ScoreDifference:
    """The first score minus the second one, over the samples that both have: the first ones.

    What a sample does to both is in neither's way: the error is √(n / (n - 1) · Σ (u_i - v_i)²) for
    the samples' influences u and v on the two values. It is infinite of one sample, and where a
    value isn't finite. Raises ValueError where they have no sample in common.
    """
    n = min(len(a.sums), len(b.sums))
    if n == 0:
        raise ValueError("two scores without samples have no difference")
    a, b = (PerSample(one.sums[:n], one.counts[:n], one.exponential) for one in (a, b))
    value = a.score().value - b.score().value
    if n == 1 or not math.isfinite(value):
        return ScoreDifference(value, math.inf, n)
    pairs = zip(a.influences(), b.influences(), strict=True)
    spread = math.fsum((u - v) ** 2 for u, v in pairs)
    return ScoreDifference(value, math.sqrt(n / (n - 1) * spread), n)


@final
@dataclass(frozen=True)
class Failure:
    """Why a plan has no score: no room for it, numbers that are none, or an exception in it.

    "search": a search can't use what became of it, for the message's reason.
    """

    reason: Literal["memory", "nan", "error", "search"]
    message: str

    def __str__(self) -> str:
        return self.message if self.reason == "search" else f"{self.reason}: {self.message}"


Outcome: TypeAlias = Score | Failure


@final
@dataclass(frozen=True)
class Result:
    """What an objective says of a target: a score, or why there is none.

    `retained` is the share of the base's score that is left; None where that has no meaning.
    `difference` is how much more the score is than that of the target `against`, sample by sample;
    None where the two have no samples in common, for the reason `unpaired`.
    """

    target: str
    objective: str
    direction: Literal["minimize", "maximize"]
    outcome: Outcome
    retained: float | None = None
    difference: ScoreDifference | None = None
    against: str = ""
    unpaired: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no score."""
        return isinstance(self.outcome, Failure)


@final
@dataclass(frozen=True)
class Speed:
    """Tokens a second: of a prompt, and of an answer made token by token."""

    prefill: float
    decoding: float


@final
@dataclass(frozen=True)
class TargetSize:
    """The size of a judged target, its speed, and the base's speed measured beside it.

    A speed of None could not be measured.
    """

    target: str
    size: OutputSize
    speed: Speed | None = None
    base_speed: Speed | None = None

    @property
    def counts(self) -> dict[str, int | None]:
        """The layers, parameters and KV cache, by their names in JSON and CSV."""
        size = self.size
        return {
            "layers": size.layers,
            "parameters": size.parameters,
            "kv_bytes": size.kv_cache,
        }

    def record(self) -> dict[str, Any]:
        """Return the JSON of an evaluation's target."""
        speeds = {"speed": self.speed, "base_speed": self.base_speed}
        told = {name: None if speed is None else asdict(speed) for name, speed in speeds.items()}
        return {"target": self.target, **self.counts, **told}


@final
@dataclass(frozen=True)
class Judgement:
    """How good targets are, beside their bases: what `judge` gives.

    `results` has an entry for each target and objective, in that order, each with an `outcome` (a
    `Score` with its standard error, or a `Failure` that says why there is none) and, where there is
    something to compare with, the paired `difference`. `subjects` has the targets' sizes:
    parameters, layers, bytes of the KV cache a token, and tokens a second if they were measured.
    `bases` and `base_subjects` are the same of the models that they are compared with.
    """

    results: tuple[Result, ...]
    subjects: tuple[TargetSize, ...]
    bases: tuple[Result, ...] = ()
    base_subjects: tuple[TargetSize, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a target lacks a score."""
        return any(result.failed for result in self.results)

    def to_json(self, *, each: bool = False) -> str:
        """A JSON object; `results` has an entry for each target and objective.

        With `each` an entry has what every sample gave: `sums` over `counts`, whose quotient over
        all samples is the score, or with `exponential` e to that.
        """
        record = {
            "results": [_result(one, each) for one in self.results],
            "targets": [one.record() for one in self.subjects],
            "bases": [_result(one, each) for one in self.bases],
            "base_targets": [one.record() for one in self.base_subjects],
        }
        return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)

    def to_csv(self) -> str:
        """A line for each target and objective, those of the bases first, below a heading."""
        sizes = {one.target: one for one in (*self.subjects, *self.base_subjects)}
        out = io.StringIO()
        lines = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        lines.writeheader()
        for one in (*self.bases, *self.results):
            record = dict(_result(one, each=False)) | sizes[one.target].counts
            difference = record.get("difference") or {}
            record["difference"] = difference.get("value")
            record["difference_stderr"] = difference.get("stderr")
            record["failure"] = (record.get("failure") or {}).get("message")
            lines.writerow(record)
        return out.getvalue()


_COLUMNS = (
    "target", "objective", "direction", "score", "stderr", "samples", "retained",
    "against", "difference", "difference_stderr", "layers", "parameters", "kv_bytes", "failure",
)  # fmt: skip


def retained_score(score: Outcome, base: Outcome | None, direction: AimDirection) -> float | None:
    """The share of the base's score: score / base, or base / score where less is better.

    None unless both are positive: a margin may be negative, the base's own divergence is 0.
    """
    if not isinstance(score, Score) or not isinstance(base, Score):
        return None
    mine, theirs = score.value, base.value
    if theirs <= 0 or mine < 0 or not (math.isfinite(mine) and math.isfinite(theirs)):
        return None
    share = LossMeasure(direction, theirs, theirs).retained(mine)
    return share if math.isfinite(share) else None


def _result(one: Result, each: bool) -> Mapping[str, Any]:
    score = one.outcome
    known: dict[str, Any] = {"target": one.target, "objective": one.objective}
    known |= dict.fromkeys(("score", "stderr", "samples"))
    known |= {"direction": one.direction, "retained": one.retained}
    if isinstance(score, Failure):
        return known | {"failure": asdict(score)}
    known |= {"score": _finite(score.value), "stderr": _finite(score.stderr)}
    known["samples"] = score.samples
    if one.difference is not None:
        value, stderr = _finite(one.difference.value), _finite(one.difference.stderr)
        known |= {"against": one.against, "difference": {"value": value, "stderr": stderr}}
    if one.unpaired:
        known |= {"unpaired": one.unpaired}
    return known | ({"each": asdict(score.each)} if each and score.each is not None else {})


def _finite(number: float) -> float | None:
    """The number; JSON has no infinity."""
    return number if math.isfinite(number) else None
