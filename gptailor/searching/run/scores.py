"""A plan's scores with the samples' parts, `Scores`, and how they are compared."""

import base64
import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from gptailor.evaluation.scores import (
    Failure,
    Outcome,
    PerSample,
    Score,
    paired_difference,
    sum_of_squares,
)
from gptailor.plan.plan import Several
from gptailor.reporting.measure import SHARES, SPREADS, Estimate, LossMeasure, shared_unit
from gptailor.searching.run.records import Aim

PerObjective = tuple[PerSample | None, ...]
"""The samples of each objective; None where its score isn't a mean of samples."""


def per_objective(outcomes: Sequence[Outcome]) -> PerObjective:
    """Return each score's samples in float32 as a study keeps them; () without any.

    So they are the same in a later process. A score that isn't a mean of samples has no samples.
    """
    samples = tuple(
        _rounded(outcome.each) if isinstance(outcome, Score) else None for outcome in outcomes
    )
    return samples if any(each is not None for each in samples) else ()


def _rounded(each: PerSample | None) -> PerSample | None:
    if each is None:
        return None
    with np.errstate(over="ignore"):
        sums = np.asarray(each.sums, np.float32).tolist()
    return PerSample(tuple(sums), each.counts, each.exponential)


def per_sample_to_json(samples: PerObjective) -> list[dict[str, Any] | None]:
    """Return samples as JSON: float32 in base85, counts only where they aren't all 1."""
    return [None if each is None else _to_json(each) for each in samples]


def _to_json(each: PerSample) -> dict[str, Any]:
    note: dict[str, Any] = {"sums": _text(np.asarray(each.sums, "<f4"))}
    if any(count != 1 for count in each.counts):
        note["counts"] = _text(np.asarray(each.counts, "<u4"))
    if each.exponential:
        note["exponential"] = True
    return note


def per_sample_from_json(notes: object) -> PerObjective:
    """Return the same samples. Raises ValueError for other JSON."""
    if not isinstance(notes, list | tuple):
        raise ValueError("expected a list of samples")  # noqa: TRY004 (pydantic takes it)
    return tuple(None if each is None else _from_json(each) for each in notes)


NotedSamples = Annotated[
    PerObjective, PlainValidator(per_sample_from_json), PlainSerializer(per_sample_to_json)
]
"""Samples that JSON has as packed text."""


def _infinite(stderr: Any) -> Any:
    return math.inf if stderr is None else stderr


StandardError = Annotated[float, Field(ge=0, allow_inf_nan=True), BeforeValidator(_infinite)]
"""A standard error; JSON has null for infinity."""
RECORD = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""The rules of a line's data, which may be a stranger's."""


def refuse_unpaired(
    values: Sequence[float], stderrs: Sequence[float], per_sample: PerObjective
) -> None:
    """Raise ValueError for values without an error, or samples, of each."""
    if len(values) != len(stderrs):
        raise ValueError("expected an error of each score")
    if len(per_sample) not in (0, len(values)):
        raise ValueError("expected samples of each score")


@final
@dataclass(frozen=True, config=RECORD)
class Scores:
    """A plan's scores by each objective: values, standard errors, and each sample's part."""

    values: Several[float]
    stderrs: Several[StandardError]
    per_sample: NotedSamples = ()

    @model_validator(mode="after")
    def _agrees(self) -> "Scores":
        refuse_unpaired(self.values, self.stderrs, self.per_sample)
        return self


def read_outcomes(outcomes: Sequence[Outcome]) -> Scores | Failure:
    """Return the scores, or the failure of the first objective without a score.

    An infinite value is a failure: nothing could be compared with it.
    """
    values, stderrs = [], []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
        if not math.isfinite(outcome.value):
            return Failure("search", f"the score is {outcome.value}")
        values.append(float(outcome.value))
        stderrs.append(float(outcome.stderr))
    return Scores(tuple(values), tuple(stderrs), per_objective(outcomes))


def _from_json(note: object) -> PerSample:
    if isinstance(note, PerSample):
        return note
    exponential = note.get("exponential", False) if isinstance(note, Mapping) else None
    if not isinstance(note, Mapping) or not isinstance(exponential, bool):
        raise ValueError("expected an object with samples")  # noqa: TRY004 (as above)
    sums = _numbers(note.get("sums"), "<f4")
    counts = [1] * len(sums) if "counts" not in note else _numbers(note["counts"], "<u4")
    if len(counts) != len(sums) or not sums:
        raise ValueError("expected as many counts as sums, and at least one")
    if 0 in counts or not all(number > -math.inf for number in sums):
        raise ValueError("expected counts above 0, and sums that are numbers")
    return PerSample(tuple(sums), tuple(counts), exponential)


def _text(numbers: np.ndarray) -> str:
    """Pack numbers with the bytes of each place together, so that like bytes compress."""
    planes = numbers.view(np.uint8).reshape(len(numbers), -1).T.tobytes()
    return base64.b85encode(zlib.compress(planes, 6)).decode()


_MOST_BYTES = 2**28
"""Bytes of the samples of one score, unpacked: a short text can stand for gigabytes."""


def _numbers(text: object, kind: str) -> list[Any]:
    if not isinstance(text, str):
        raise ValueError("expected samples as text")  # noqa: TRY004 (as above)
    size = np.dtype(kind).itemsize
    try:
        packed = zlib.decompressobj()
        raw = packed.decompress(base64.b85decode(text), _MOST_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError("samples are incomplete") from error
    if not packed.eof or len(raw) % size:
        raise ValueError("samples are incomplete")
    planes = np.frombuffer(raw, np.uint8)
    numbers: list[Any] = planes.reshape(size, -1).T.copy().view(kind).ravel().tolist()
    return numbers


def front(values: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, " n"]:
    """Return a mask of the Pareto front of minimised values: rows that no other row betters.

    A row betters another if it is nowhere worse and somewhere better. Only the first of equal rows
    is on the front. A row with NaN is never on the front and betters no row.
    """
    valid = ~np.isnan(values).any(axis=1)
    row, other = values[:, None], values[None]
    nowhere_worse = valid & (other <= row).all(axis=2)
    better = nowhere_worse & (other < row).any(axis=2)
    first = np.tril(nowhere_worse & (other == row).all(axis=2), -1)
    kept: Bool[np.ndarray, " n"] = valid & ~(better | first).any(axis=1)
    return kept


# ------------------------------------------------------------------------------------ comparisons


@final
class Comparison(NamedTuple):
    """The mean of losses by the objectives that have these `numbers`.

    `widths` hold the unit of each objective's scores: 1 where all are in one `unit`, a hundredth of
    the base's score where losses are shares of it, else the spread of the starting plans'.
    `samples` are equal for objectives that are measured on the same samples: their errors go
    together. Without them each objective has its own.
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
                    variance += sum_of_squares(error / measure.width for error in errors)
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
    return len(sums) / (len(sums) - 1) * sum_of_squares(sums) if len(sums) > 1 else 0.0
