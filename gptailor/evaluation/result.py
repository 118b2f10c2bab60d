"""The result of an evaluation: its scores as a table, as JSON, as CSV and as rows."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, final

import click

from gptailor.evaluation.score_table import score_lines, size_lines
from gptailor.evaluation.scores import (
    Failure,
    Outcome,
    PerSample,
    Result,
    Score,
    ScoreDifference,
    TargetSize,
    paired_difference,
)
from gptailor.lang.plan_of import target_name
from gptailor.plan.faults import TailorError, listed
from gptailor.plan.plan import Plan
from gptailor.reporting.measure import finite_or_none
from gptailor.reporting.records import data_frame


@final
@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """The quality of targets, beside their bases, as `evaluate` returns it.

    `results` has an entry for each target and objective, in that order. Each entry has an
    `outcome`: a `Score` with its standard error, or a `Failure` with a reason. An entry that can be
    compared has the paired `difference`. `subjects` has the targets' sizes: parameters, layers,
    bytes of the KV cache a token, and tokens a second if they were measured. `bases` and
    `base_subjects` are the same for the models that the targets are compared with. With `by_byte`
    the vocabularies differ, so `nll` is in bits a byte, `perplexity` and `kl` are by byte too.
    """

    results: tuple[Result, ...]
    subjects: tuple[TargetSize, ...]
    bases: tuple[Result, ...] = ()
    base_subjects: tuple[TargetSize, ...] = ()
    by_byte: bool = False

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
        } | ({"by_byte": True} if self.by_byte else {})
        return json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Return the table that `gptailor eval` prints, in 100 columns."""
        return click.unstyle("\n".join(self.lines(100)))

    __repr__ = __str__

    def lines(self, width: int, encoding: str | None = None) -> Iterator[str]:
        """Yield the lines of all scores and sizes for a terminal of `width` columns."""
        results, subjects = (*self.bases, *self.results), (*self.base_subjects, *self.subjects)
        yield from score_lines(results, width, encoding)
        yield ""
        yield from size_lines(subjects, width, encoding)
        if self.by_byte:
            yield BY_BYTE

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each target and objective, those of the bases first, by column.

        The columns are those of `to_csv`; a missing value is None.
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

    def difference(
        self, target: str | Path | Plan, other: str | Path | Plan = "base"
    ) -> dict[str, ScoreDifference]:
        """Return by objective how much larger a target's score is than another's, with its error.

        Targets are named as they were given to `evaluate`; "base" is the base that all targets
        share. The differences are paired, sample by sample. Objectives without samples in common,
        or with a failure, are left out. Raises TailorError for an unknown target, with the known
        ones.
        """
        by_target: dict[str, dict[str, Outcome]] = {}
        for result in (*self.bases, *self.results):
            if result.objective in by_target.setdefault(result.target, {}):
                raise TailorError(f"several targets are called '{result.target}'")
            by_target[result.target][result.objective] = result.outcome
        base = {result.target for result in self.bases} or {
            result.against for result in self.results if result.against
        }
        outcomes = []
        for given in (target, other):
            name = target_name(given if isinstance(given, Plan) else str(given))
            if name not in by_target and name == "base" and len(base) == 1:
                (name,) = base
            if name not in by_target:
                raise TailorError(f"no target is '{name}'; the targets are {listed(by_target)}")
            outcomes.append(by_target[name])
        found = {}
        for objective, outcome in outcomes[0].items():
            one, two = _each(outcome), _each(outcomes[1].get(objective))
            if one is not None and two is not None:
                found[objective] = paired_difference(one, two)
        return found

    def _repr_html_(self) -> str:
        """Return the table of a notebook: the text of `print`."""
        return f"<pre>{escape(str(self))}</pre>"


BY_BYTE = "The vocabularies differ: nll is in bits a byte, perplexity and kl are by byte."
"""The note below scores that count by bytes."""


def _each(outcome: Outcome | None) -> PerSample | None:
    """Return the terms of a score's samples; None for a failure and for a score without samples."""
    each = outcome.each if isinstance(outcome, Score) else None
    return each if each is not None and each.sums else None


_COLUMNS = (
    "target", "objective", "direction", "score", "stderr", "samples", "retained",
    "against", "difference", "difference_stderr", "layers", "parameters", "kv_bytes", "failure",
)  # fmt: skip


def _result(result: Result, each: bool) -> Mapping[str, Any]:
    score = result.outcome
    record: dict[str, Any] = {"target": result.target, "objective": result.objective}
    record |= dict.fromkeys(("score", "stderr", "samples"))
    record |= {"direction": result.direction, "retained": result.retained}
    if isinstance(score, Failure):
        return record | {"failure": asdict(score)}
    record |= {"score": finite_or_none(score.value), "stderr": finite_or_none(score.stderr)}
    record["samples"] = score.samples
    if result.difference is not None:
        value, stderr = (
            finite_or_none(result.difference.value),
            finite_or_none(result.difference.stderr),
        )
        record |= {"against": result.against, "difference": {"value": value, "stderr": stderr}}
    if result.unpaired:
        record |= {"unpaired": result.unpaired}
    return record | ({"each": asdict(score.each)} if each and score.each is not None else {})
