"""The result of an objective on a plan: a score with its error, or a failure."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

from gptailor.plan.faults import TailorError, listed
from gptailor.plan.output_size import OutputSize
from gptailor.report.measure import AimDirection, LossMeasure
from gptailor.report.records import data_frame, html_table


@final
class NotANumberError(ValueError):
    """A score that would be NaN."""


@final
@dataclass(frozen=True)
class PerSample:
    """The terms of a score, sample by sample: Σ sums / Σ counts, or e to that.

    The samples stand in the order in which fidelities take them. So plans are compared sample by
    sample, and a lower fidelity has the first samples.
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]
    exponential: bool = False

    def score(self, samples: int | None = None) -> "Score":
        """Return the score of the first samples, or of all."""
        quotient = ratio(self.sums[:samples], self.counts[:samples])
        return exponential(quotient) if self.exponential else quotient

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
    return ratio(values, [1] * len(values))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Score:
    """Return Σ sums / Σ counts, with a sum and a count for each sample.

    The error is the delta method's: √(n / (n - 1) · Σ (s_i - R c_i)²) / Σ c_i. Sums are exact and
    rounded once, so the samples' order changes nothing.
    """
    samples, total, each = len(sums), sum(counts), PerSample(tuple(sums), tuple(counts))
    value = math.fsum(sums) / total
    if samples < 2 or math.isinf(value):
        return Score(value, math.inf, samples, each)
    residuals = (s - value * c for s, c in zip(sums, counts, strict=True))
    spread = math.fsum(residual * residual for residual in residuals)
    return Score(value, math.sqrt(samples / (samples - 1) * spread) / total, samples, each)


def exponential(score: Score) -> Score:
    """Return e to the score, with the error by the delta method: e^value · stderr."""
    each = None if score.each is None else replace(score.each, exponential=True)
    try:
        value = math.exp(score.value)
    except OverflowError:
        return Score(math.inf, math.inf, score.samples, each)
    return Score(value, value * score.stderr, score.samples, each)


@final
@dataclass(frozen=True)
class ScoreDifference:
    """How much larger a score is than another, its standard error, and its samples."""

    value: float
    stderr: float
    samples: int


def paired_difference(a: PerSample, b: PerSample) -> ScoreDifference:
    """Return the first score minus the second, over the first samples that both have.

    An effect of a sample on both scores cancels. The error is √(n / (n - 1) · Σ (u_i - v_i)²) for
    the samples' influences u and v on the two values. It is infinite for one sample, and for a
    value that isn't finite. Raises ValueError if the scores have no sample in common.
    """
    n = min(len(a.sums), len(b.sums))
    if n == 0:
        raise ValueError("two scores without samples have no difference")
    a, b = (PerSample(score.sums[:n], score.counts[:n], score.exponential) for score in (a, b))
    value = a.score().value - b.score().value
    if n == 1 or not math.isfinite(value):
        return ScoreDifference(value, math.inf, n)
    pairs = zip(a.influences(), b.influences(), strict=True)
    spread = math.fsum((u - v) ** 2 for u, v in pairs)
    return ScoreDifference(value, math.sqrt(n / (n - 1) * spread), n)


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


@final
@dataclass(frozen=True)
class Result:
    """The result of an objective on a target: a score, or a failure.

    `retained` is the remaining share of the base's score; None if a share has no meaning.
    `difference` is how much larger the score is than that of the target `against`, sample by
    sample. It is None if the two have no samples in common, for the reason `unpaired`.
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
        """Return whether the score is missing."""
        return isinstance(self.outcome, Failure)


@final
@dataclass(frozen=True)
class Speed:
    """Tokens a second: of a prompt, and of an answer generated token by token."""

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
        records = {name: None if speed is None else asdict(speed) for name, speed in speeds.items()}
        return {"target": self.target, **self.counts, **records}


@final
@dataclass(frozen=True)
class Judgement:
    """The quality of targets, beside their bases, as `judge` returns it.

    `results` has an entry for each target and objective, in that order. Each entry has an
    `outcome`: a `Score` with its standard error, or a `Failure` with a reason. An entry that can be
    compared has the paired `difference`. `subjects` has the targets' sizes: parameters, layers,
    bytes of the KV cache a token, and tokens a second if they were measured. `bases` and
    `base_subjects` are the same for the models that the targets are compared with.
    """

    results: tuple[Result, ...]
    subjects: tuple[TargetSize, ...]
    bases: tuple[Result, ...] = ()
    base_subjects: tuple[TargetSize, ...] = ()

    @property
    def failed(self) -> bool:
        """Return whether a target lacks a score."""
        return any(result.failed for result in self.results)

    def to_json(self, *, each: bool = False) -> str:
        """Return a JSON object; `results` has an entry for each target and objective.

        With `each` an entry has every sample's terms: `sums` over `counts`. The score is their
        quotient over all samples, or with `exponential` e to that.
        """
        record = {
            "results": [_result(result, each) for result in self.results],
            "targets": [size.record() for size in self.subjects],
            "bases": [_result(result, each) for result in self.bases],
            "base_targets": [size.record() for size in self.base_subjects],
        }
        return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each target and objective, those of the bases first, by column.

        The columns are those of `to_csv`; a missing value is None.
        """
        sizes = {size.target: size for size in (*self.subjects, *self.base_subjects)}
        rows = []
        for result in (*self.bases, *self.results):
            record = dict(_result(result, each=False)) | sizes[result.target].counts
            difference = record.get("difference") or {}
            record["difference"] = difference.get("value")
            record["difference_stderr"] = difference.get("stderr")
            record["failure"] = (record.get("failure") or {}).get("message")
            rows.append({column: record.get(column) for column in _COLUMNS})
        return rows

    def to_pandas(self) -> Any:
        """Return the rows of `records` as a table of pandas.

        Raises MissingPackageError without pandas.
        """
        return data_frame(self.records())

    def to_csv(self) -> str:
        """Return a heading and a line for each target and objective, those of the bases first."""
        out = io.StringIO()
        lines = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(self.records())
        return out.getvalue()

    def difference(self, target: str, other: str) -> dict[str, ScoreDifference]:
        """Return by objective how much larger a target's score is than another's, with its error.

        The differences are paired, sample by sample. Objectives without samples in common, or with
        a failure, are left out. Raises TailorError for an unknown target, with the known ones.
        """
        by_target: dict[str, dict[str, Outcome]] = {}
        for result in (*self.bases, *self.results):
            if result.objective in by_target.setdefault(result.target, {}):
                raise TailorError(f"several targets are called '{result.target}'")
            by_target[result.target][result.objective] = result.outcome
        for name in (target, other):
            if name not in by_target:
                raise TailorError(f"no target is '{name}'; the targets are {listed(by_target)}")
        found = {}
        for objective, outcome in by_target[target].items():
            one, two = _each(outcome), _each(by_target[other].get(objective))
            if one is not None and two is not None:
                found[objective] = paired_difference(one, two)
        return found

    def _repr_html_(self) -> str:
        """Return the scores as a table of a notebook."""
        heads = ("target", "objective", "score", "stderr", "difference", "failure")
        return html_table(self.records(), heads)


def _each(outcome: Outcome | None) -> PerSample | None:
    """Return the terms of a score's samples; None for a failure and for a score without samples."""
    each = outcome.each if isinstance(outcome, Score) else None
    return each if each is not None and each.sums else None


_COLUMNS = (
    "target", "objective", "direction", "score", "stderr", "samples", "retained",
    "against", "difference", "difference_stderr", "layers", "parameters", "kv_bytes", "failure",
)  # fmt: skip


def retained_score(score: Outcome, base: Outcome | None, direction: AimDirection) -> float | None:
    """Return the share of the base's score: score / base, or base / score if less is better.

    None unless both are positive: a margin may be negative, the base's own divergence is 0.
    """
    if not isinstance(score, Score) or not isinstance(base, Score):
        return None
    value, base_value = score.value, base.value
    if base_value <= 0 or value < 0 or not (math.isfinite(value) and math.isfinite(base_value)):
        return None
    share = LossMeasure(direction, base_value, base_value).retained(value)
    return share if math.isfinite(share) else None


def _result(result: Result, each: bool) -> Mapping[str, Any]:
    score = result.outcome
    record: dict[str, Any] = {"target": result.target, "objective": result.objective}
    record |= dict.fromkeys(("score", "stderr", "samples"))
    record |= {"direction": result.direction, "retained": result.retained}
    if isinstance(score, Failure):
        return record | {"failure": asdict(score)}
    record |= {"score": _finite(score.value), "stderr": _finite(score.stderr)}
    record["samples"] = score.samples
    if result.difference is not None:
        value, stderr = _finite(result.difference.value), _finite(result.difference.stderr)
        record |= {"against": result.against, "difference": {"value": value, "stderr": stderr}}
    if result.unpaired:
        record |= {"unpaired": result.unpaired}
    return record | ({"each": asdict(score.each)} if each and score.each is not None else {})


def _finite(number: float) -> float | None:
    """Return the number, or None for infinity, which JSON lacks."""
    return number if math.isfinite(number) else None
