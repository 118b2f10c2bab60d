"""The result of an evaluation: its scores as a table, as JSON, as CSV and as rows."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeAlias, final

import click

from gptailor.evaluation.scores import (
    Failure,
    Outcome,
    PerSample,
    Result,
    Score,
    TargetSize,
    paired_difference,
)
from gptailor.lang.plan_of import target_name
from gptailor.plan.faults import TailorError, listed
from gptailor.plan.plan import Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.measure import Estimate, finite_or_none
from gptailor.reporting.quantities import (
    bytes_in_words,
    percent,
    short_count,
    speed_in_words,
    with_error,
)
from gptailor.reporting.records import data_frame
from gptailor.reporting.table import (
    has_room,
    legend_lines,
    row_numbers,
    shortened,
    table_lines,
)
from gptailor.reporting.terminal_encoding import wrapped

_INDENT = "  "

_Table: TypeAlias = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table: the line above it, its head, and its rows, which begin with a target's name."""


@final
@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """The quality of targets, compared with their bases, as `evaluate` returns it.

    `results` has an entry for each target and objective, in that order. Each entry has an
    `outcome`: a `Score` with its standard error, or a `Failure` with a reason. An entry that can be
    compared has the paired `difference`. `subjects` has the targets' sizes: parameters, layers,
    bytes of the KV cache a token, and tokens a second if they were measured. `bases` and
    `base_subjects` are the same for the models that the targets are compared with. With `by_byte`
    the vocabularies differ, so `nll` is in bits a byte, `perplexity` and `kl` are by byte too.
    `plans` are the targets that were given as a `Plan`, with their names.
    """

    results: tuple[Result, ...]
    subjects: tuple[TargetSize, ...]
    bases: tuple[Result, ...] = ()
    base_subjects: tuple[TargetSize, ...] = ()
    by_byte: bool = False
    plans: tuple[tuple[Plan, str], ...] = field(default=(), compare=False)

    @property
    def failed(self) -> bool:
        """Return whether a target lacks a score."""
        return any(isinstance(result.outcome, Failure) for result in self.results)

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
        } | ({"by_byte": True} if self.by_byte else {})
        return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Return the table that `gptailor eval` prints, in 100 columns."""
        return click.unstyle("\n".join(self.lines(100)))

    __repr__ = __str__

    def lines(self, width: int, encoding: str | None = None) -> Iterator[str]:
        """Yield the lines of all scores and sizes for a terminal of `width` columns.

        Characters that the terminal's encoding lacks are replaced; None is UTF-8. Targets have
        numbers if their names have no room in a table.
        """
        results, subjects = (*self.bases, *self.results), (*self.base_subjects, *self.subjects)
        if self.by_byte:
            yield from wrapped(_BY_BYTE, width)
        columns: dict[str, list[Result]] = {}
        for result in results:
            columns.setdefault(result.objective, []).append(result)
        heads = _heads(columns)
        yield from _objective_lines(heads, columns, width)
        rows = list(zip(*columns.values(), strict=True))
        names = [subject.target for subject in subjects]
        tables = [*_score_tables(heads, columns, names), _size_table(subjects, names)]
        if not all(has_room(head, body, width) for _, head, body in tables):
            numbers = row_numbers(names)
            yield from legend_lines(numbers, names, width, encoding)
            tables = [*_score_tables(heads, columns, numbers), _size_table(subjects, numbers)]
        for title, head, body in tables[:-1]:
            yield from wrapped(title, width)
            yield from table_lines(head, body, width, encoding)
        yield from _remarks(heads, rows, width)
        yield ""
        yield from table_lines(*tables[-1][1:], width, encoding)

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each target and objective, the bases' rows first, by column.

        The columns are the same as in `to_csv`; a missing value is None. `unit` is the unit of
        `score`, such as `nats a token`, or `bits a byte` where the vocabularies differ.
        """
        results, subjects = (*self.bases, *self.results), (*self.base_subjects, *self.subjects)
        each = len(results) // len(subjects) if subjects else 1
        rows = []
        for number, result in enumerate(results):  # names of targets may be equal
            record = dict(_result(result, each=False)) | subjects[number // each].counts
            difference = record.get("difference") or {}
            record["difference"] = difference.get("value")
            record["difference_stderr"] = difference.get("stderr")
            record["failure"] = (record.get("failure") or {}).get("message")
            record["unit"] = _unit(result.objective, by_byte=self.by_byte)
            rows.append({column: record.get(column) for column in _COLUMNS})
        return rows

    def to_pandas(self) -> Any:
        """Return the rows of `records` as a table of pandas.

        Raises MissingPackageError without pandas.
        """
        return data_frame(self.records())

    def to_csv(self) -> str:
        """Return a heading and a line for each target and objective, the bases' lines first."""
        out = io.StringIO()
        lines = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(self.records())
        return out.getvalue()

    def difference(
        self, target: str | Path | Plan, other: str | Path | Plan = "base"
    ) -> dict[str, Estimate]:
        """Return by objective how much larger a target's score is than another's, with its error.

        Targets are given as they were to `evaluate`, or named as in the table; "base" is the base
        that all targets share. The differences are paired, sample by sample. Objectives without
        samples in common, or with a failure, are left out. Raises TailorError for an unknown
        target, with the known ones, and for several targets of one name.
        """
        by_target: dict[str, dict[str, PerSample | None]] = {}
        for result in (*self.bases, *self.results):
            if result.objective in by_target.setdefault(result.target, {}):
                raise TailorError(
                    f"several targets have the name '{result.target}': give each target once, "
                    "or name plans by gptailor.loads(text, name=…)"
                )
            by_target[result.target][result.objective] = _each(result.outcome)
        base = {result.target for result in self.bases} or {
            result.against for result in self.results if result.against
        }
        samples = []
        for given in (target, other):
            name = self._name(given) if isinstance(given, Plan) else str(given)
            if name not in by_target and name == "base" and len(base) == 1:
                (name,) = base
            if name not in by_target:
                raise TailorError(
                    f"there is no target '{name}'; the targets are {listed(by_target)}"
                )
            samples.append(by_target[name])
        mine, theirs = samples
        pairs = ((name, each, theirs.get(name)) for name, each in mine.items())
        return {name: paired_difference(one, two) for name, one, two in pairs if one and two}

    def _name(self, target: Plan) -> str:
        """Return the name of a plan as a target: of this very plan, else of an equal one."""
        very = [name for plan, name in self.plans if plan is target]
        found = very or [name for plan, name in self.plans if plan == target]
        return found[0] if found else target_name(target)

    def _repr_html_(self) -> str:
        """Return the table of a notebook: the text of `print`."""
        return f"<pre>{escape(str(self))}</pre>"


def _each(outcome: Outcome) -> PerSample | None:
    """Return the terms of a score's samples; None for a failure and for a score without samples."""
    each = outcome.each if isinstance(outcome, Score) else None
    return each if each is not None and each.sums else None


_COLUMNS = (
    "target", "objective", "direction", "score", "stderr", "samples", "retained",
    "against", "difference", "difference_stderr", "layers", "parameters", "kv_bytes", "failure",
    "unit",
)  # fmt: skip


def _unit(objective: str, *, by_byte: bool) -> str | None:
    """Return the unit of an objective's scores; None for scores without a unit."""
    spec = OBJECTIVES.get(objective.partition("(")[0])
    if spec is not None and spec.byte_unit:
        return spec.byte_unit if by_byte else f"{spec.unit} a token"
    return spec and (spec.unit or None)


def _result(result: Result, each: bool) -> Mapping[str, Any]:
    score = result.outcome
    record: dict[str, Any] = {
        "target": result.target, "objective": result.objective,
        "score": None, "stderr": None, "samples": None,
        "direction": result.direction, "retained": result.retained,
    }  # fmt: skip
    if isinstance(score, Failure):
        return record | {"failure": asdict(score)}
    value, stderr = finite_or_none(score.value), finite_or_none(score.stderr)
    record |= {"score": value, "stderr": stderr, "samples": score.samples}
    if (difference := result.difference) is not None:
        value, stderr = finite_or_none(difference.value), difference.finite_error
        record |= {"against": result.against, "difference": {"value": value, "stderr": stderr}}
    if result.unpaired:
        record |= {"unpaired": result.unpaired}
    return record | ({"each": asdict(score.each)} if each and score.each is not None else {})


# -------------------------------------------------------------------------------------- the table


_BY_BYTE = "The vocabularies differ: nll is in bits a byte, perplexity and kl are by byte."


def _heads(columns: Mapping[str, Sequence[Result]]) -> list[str]:
    """Return the heads of objectives in tables; a single objective needs no head."""
    return [""] if len(columns) == 1 else [f"({n})" for n in range(1, len(columns) + 1)]


def _objective_lines(
    heads: Sequence[str], columns: Mapping[str, Sequence[Result]], width: int
) -> Iterator[str]:
    """Yield the objectives by their heads, with their samples."""
    for head, (name, column) in zip(heads, columns.items(), strict=True):
        title, said = f"{head} {name}".lstrip(), _column_words(column)
        line = f"{title}: {said}"
        yield from [line] if len(line) <= width else [f"{title}:", f"{_INDENT}{said}"]


def _score_tables(
    heads: Sequence[str], columns: Mapping[str, Sequence[Result]], names: Sequence[str]
) -> Iterator[_Table]:
    """Yield the tables of scores, differences and shares, targets down and objectives across."""
    rows = list(zip(*columns.values(), strict=True))
    means = [] if len(columns) == 1 else _means(list(columns))
    besides = {result.against for row in rows for result in row} - {""}
    beside = besides.pop() if len(besides) == 1 else "its base"
    all_heads = [*heads, *(head for head, _ in means)]
    scores = [_cells([_estimate(r.outcome) for r in row], means, with_error, "failed")
              for row in rows]  # fmt: skip
    shares = [[_share_words(result) for result in row] + [""] * len(means) for row in rows]
    differences = [_cells([r.difference for r in row], means, _difference_words) for row in rows]
    for title, cells in (
        ("", scores),
        (f"difference from {shortened(beside, 30)}, paired (* beyond two errors)", differences),
        ("of the base's score", shares),
    ):
        filled = [n for n, row in enumerate(cells) if any(row)]
        used = [j for j in range(len(all_heads)) if any(cells[n][j] for n in filled)]
        if filled:
            body = [[names[n], *(cells[n][j] for j in used)] for n in filled]
            yield title, ["", *(all_heads[j] for j in used)], body


def _remarks(heads: Sequence[str], rows: Sequence[Sequence[Result]], width: int) -> Iterator[str]:
    """Yield the reasons of missing differences and scores."""
    for row in rows:
        for reason in dict.fromkeys(result.unpaired for result in row if result.unpaired):
            yield from wrapped(
                f"{row[0].target} has no difference: {reason}", width, "", _INDENT, 4
            )
    for row in rows:
        for head, result in zip(heads, row, strict=True):
            if isinstance(result.outcome, Failure):
                failed = f"{head} {result.target} failed: {result.outcome.message}".lstrip()
                yield from wrapped(failed, width, "", _INDENT, 4)


def _column_words(results: Sequence[Result]) -> str:
    """Describe an objective's scores: `64 samples, less is better`."""
    better = "less" if results[0].direction == "minimize" else "more"
    counts = {result.outcome.samples for result in results if isinstance(result.outcome, Score)}
    samples = "".join(f"{n} sample{'s' * (n != 1)}, " for n in sorted(counts - {0})[:1])
    return f"{samples}{better} is better"


def _means(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return a head and the objectives' numbers for each kind with several objectives.

    Objectives of a kind differ in their files alone.
    """
    of_kind: dict[tuple[str, str], list[int]] = {}
    for number, objective in enumerate(names):
        name, _, arguments = objective.partition('("')
        of_kind.setdefault((name, arguments.partition('"')[2]), []).append(number)
    means = []
    for numbers in (alike for alike in of_kind.values() if len(alike) > 1):
        first, last = numbers[0] + 1, numbers[-1] + 1
        words = (
            f"{first}..{last}"
            if last - first + 1 == len(numbers)
            else ",".join(str(i + 1) for i in numbers)
        )
        means.append(("mean" if len(numbers) == len(names) else f"mean ({words})", numbers))
    return means


def _estimate(outcome: Outcome) -> Estimate | None:
    return Estimate(outcome.value, outcome.stderr) if isinstance(outcome, Score) else None


def _cells(
    row: Sequence[Estimate | None],
    means: Sequence[tuple[str, Sequence[int]]],
    words: Callable[[float, float], str],
    missing: str = "",
) -> list[str]:
    """Return the cells of a target: its estimates, then the means over some of them."""
    averages = [_mean([row[i] for i in among]) for _, among in means]
    own = [missing if estimate is None else words(*estimate) for estimate in row]
    return own + ["" if mean is None else words(*mean) for mean in averages]


def _difference_words(value: float, error: float) -> str:
    """Return `+0.214 ± 0.031 *`; the star marks a difference beyond two errors."""
    difference = Estimate(value, error)
    sure = difference.sure or difference.reversed.sure
    sign = "+" if value >= 0 else ""
    return f"{sign}{with_error(value, error)}{' *' if sure else '  '}"


def _share_words(result: Result) -> str:
    """Return the share of the base's score, if the score is an accuracy."""
    spec = OBJECTIVES.get(result.objective.partition("(")[0])
    shown = spec is not None and spec.share_of_base and result.direction == "maximize"
    return percent(result.retained) if shown and result.retained is not None else ""


def _mean(scores: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean with equal weights of scores on independent texts."""
    present = [score for score in scores if score is not None]
    if not present or len(present) < len(scores):
        return None
    value = math.fsum(score.value for score in present) / len(present)
    return Estimate(value, math.hypot(*(score.stderr for score in present)) / len(present))


def _size_table(subjects: Sequence[TargetSize], names: Sequence[str]) -> _Table:
    """Return the table of targets' sizes, and of their speeds if one is known."""
    fast = any(subject.speed is not None for subject in subjects)
    head = ["", "layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] * fast)]
    body = []
    for name, subject in zip(names, subjects, strict=True):
        size, speed, base = subject.size, subject.speed, subject.base_speed
        layers, cache = str(size.layers), bytes_in_words(size.kv_cache, "B")
        row = [name, layers, short_count(size.parameters), cache]
        if speed is not None:
            row.append(speed_in_words(speed.prefill, None if base is None else base.prefill))
            row.append(speed_in_words(speed.decoding, None if base is None else base.decoding))
        body.append([*row, *["?"] * (len(head) - len(row))])
    return "", head, body
