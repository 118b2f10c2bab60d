"""The results of `gptailor test`: each expectation's value, bound and verdict; tables and JUnit."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, final
from xml.etree import ElementTree

from gptailor.plan.faults import Fault, fault_record
from gptailor.reporting.measure import Estimate, finite_or_none
from gptailor.reporting.quantities import with_error
from gptailor.reporting.table import table_lines
from gptailor.reporting.terminal_encoding import escaped_control, wrapped

_WORDS = {"pass": "pass", "tie": "pass (a tie)", "fail": "FAIL", "unknown": "FAIL (no score)"}
_INDENT = "  "


@final
@dataclass(frozen=True)
class ExpectationResult:
    """The result of one expectation of a plan.

    `value` is the measured score, size or time, and `bound` the number that it is compared with.
    `difference` is the value minus the bound. Its error is the error of the paired difference, if
    the bound is a share of a model's score. The verdict is `tie` if the difference is at most two
    standard errors, and `unknown` if the score is missing, for the `reason`. `fault` is the fault
    of an expectation that is not met, with its place in the plan's text.
    """

    target: str
    expectation: str
    verdict: Literal["pass", "tie", "fail", "unknown"]
    value: Estimate | None = None
    bound: float | None = None
    difference: Estimate | None = None
    reason: str = ""
    fault: Fault | None = field(default=None, compare=False, repr=False)

    @property
    def passed(self) -> bool:
        """Return whether the expectation is met, or missed by less than the noise."""
        return self.verdict in ("pass", "tie")

    def record(self) -> dict[str, Any]:
        """Return the JSON of the result; an unknown or infinite number is None."""
        value, difference = self.value, self.difference
        return {
            "target": self.target,
            "expectation": self.expectation,
            "verdict": self.verdict,
            "passed": self.passed,
            "value": None if value is None else finite_or_none(value.value),
            "stderr": None if value is None else value.finite_error,
            "bound": None if self.bound is None else finite_or_none(self.bound),
            "difference": None if difference is None else finite_or_none(difference.value),
            "difference_stderr": None if difference is None else difference.finite_error,
            "reason": self.reason,
            "fault": None if self.fault is None else fault_record(self.fault),
        }


def difference_words(result: ExpectationResult) -> str:
    """Return `0.21 ± 0.02 above the bound`; the reason if the difference is missing."""
    if result.difference is None:
        return result.reason
    value, error = result.difference
    side = "above" if value > 0 else "below"
    return f"{with_error(abs(value), error)} {side} the bound" if value else "at the bound"


def _verdict_words(result: ExpectationResult) -> str:
    """Return `pass`, `FAIL: 0.21 ± 0.02 above the bound`, or `pass (a tie: …)`."""
    if result.verdict == "pass":
        return "pass"
    difference = difference_words(result)
    return f"pass (a tie: {difference})" if result.verdict == "tie" else f"FAIL: {difference}"


def expectation_lines(
    results: Sequence[ExpectationResult], width: int, encoding: str | None = None
) -> Iterator[str]:
    """Yield a table for each target; ties and failures have a line with the difference below."""
    for target, group in groupby(results, key=lambda result: result.target):
        rows = list(group)
        yield escaped_control(target)
        body = [
            (escaped_control(row.expectation), _value_words(row), _bound_words(row),
             _WORDS[row.verdict])
            for row in rows
        ]  # fmt: skip
        yield from table_lines(["", "measured", "bound", "verdict"], body, width, encoding)
        for row in rows:
            if row.verdict != "pass":
                words = " ".join(_verdict_words(row).split())  # an error has several lines
                line = escaped_control(f"{row.expectation}: {words}")
                yield from wrapped(line, width, _INDENT, 2 * _INDENT)
    yield _count_words(results)


def _count_words(results: Sequence[ExpectationResult]) -> str:
    """Return `3 passed, 1 of them a tie; 1 failed`."""
    passed = sum(result.passed for result in results)
    ties = sum(result.verdict == "tie" for result in results)
    tied = f", {ties} of them {'a tie' if ties == 1 else 'ties'}" if ties else ""
    failed = f"; {len(results) - passed} failed" if passed < len(results) else ""
    return f"{passed} passed{tied}{failed}"


def _value_words(result: ExpectationResult) -> str:
    return "?" if result.value is None else with_error(*result.value).removesuffix(" ± 0")


def _bound_words(result: ExpectationResult) -> str:
    """Return the bound with the decimals of the value."""
    if result.bound is None:
        return "?"
    error = 0.0 if result.value is None else result.value.stderr
    return with_error(result.bound, error).partition(" ±")[0]


def expectations_json(results: Sequence[ExpectationResult]) -> str:
    """Return the results as JSON: a list of objects."""
    records = [row.record() for row in results]
    return json.dumps(records, ensure_ascii=False, indent=2, allow_nan=False)


def junit(results: Sequence[ExpectationResult]) -> str:
    """Return the results as JUnit XML: a suite for each target, a case for each expectation."""
    root = ElementTree.Element("testsuites", {"name": "gptailor", **_counts(results)})
    for target, group in groupby(results, key=lambda result: result.target):
        rows, name = list(group), escaped_control(target)
        suite = ElementTree.SubElement(root, "testsuite", {"name": name, **_counts(rows)})
        for row in rows:
            case = ElementTree.SubElement(
                suite, "testcase", classname=name, name=escaped_control(row.expectation)
            )
            measured = f"measured {_value_words(row)}, bound {_bound_words(row)}"
            if row.passed:
                words = f"{measured}: {_verdict_words(row)}"
                ElementTree.SubElement(case, "system-out").text = words
            else:
                tag = "error" if row.verdict == "unknown" else "failure"
                message = escaped_control(difference_words(row))
                ElementTree.SubElement(case, tag, message=message).text = measured
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _counts(results: Sequence[ExpectationResult]) -> dict[str, str]:
    verdicts = [result.verdict for result in results]
    counts = {"tests": len(verdicts), "failures": verdicts.count("fail")}
    return {name: str(n) for name, n in (counts | {"errors": verdicts.count("unknown")}).items()}
