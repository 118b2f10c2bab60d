"""Results of expectations as people, programs and CI systems read them."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

from gptailor.plan.faults import Fault, Source, Span
from gptailor.plugins.expect.results import (
    ExpectationResult,
    expectation_lines,
    expectations_json,
    junit,
)
from gptailor.reporting.measure import Estimate

RESULTS = (
    ExpectationResult("a.tailor", 'nll("t") <= 2', "pass", Estimate(1.5, 0.1), 2.0,
                      Estimate(-0.5, 0.1)),
    ExpectationResult("a.tailor", 'nll("t") <= base', "tie", Estimate(1.5, 0.1), 1.45,
                      Estimate(0.05, 0.03)),
    ExpectationResult("b.tailor", 'nll("\x1b[31m") < 9', "fail", Estimate(math.inf, math.inf), 9.0,
                      Estimate(math.inf, math.inf)),
    ExpectationResult("b.tailor", 'nll("u") <= 2', "unknown", reason="nan: NaN\x07"),
)  # fmt: skip


def test_each_plan_has_a_table_and_other_results_have_lines() -> None:
    assert list(expectation_lines(RESULTS, 60)) == [
        "a.tailor",
        "                       measured  bound       verdict",
        '  nll("t") <= 2     1.50 ± 0.10   2.00          pass',
        '  nll("t") <= base  1.50 ± 0.10   1.45  pass (a tie)',
        '  nll("t") <= base: pass (a tie: 0.050 ± 0.030 above the',
        "    bound)",
        "b.tailor",
        "                       measured  bound          verdict",
        '  nll("\\x1b[31m") < 9   inf ± ?      9             FAIL',
        '  nll("u") <= 2               ?      ?  FAIL (no score)',
        '  nll("\\x1b[31m") < 9: FAIL: inf ± ? above the bound',
        '  nll("u") <= 2: FAIL: nan: NaN\\x07',
        "2 passed, 1 of them a tie; 2 failed",
    ]


def test_json_has_the_fault_with_its_line() -> None:
    source = Source("a.tailor", "tailor 1\nexpect parameters() < 5\n")
    fault = Fault("M501", "too large", ("expects", 0), span=Span(9, 32), source=source)
    row = replace(RESULTS[2], fault=fault)
    [result] = json.loads(expectations_json([row]))
    assert {"code": "M501", "file": "a.tailor", "line": 2}.items() <= result["fault"].items()


def test_json_has_no_infinite_number() -> None:
    result = json.loads(expectations_json(RESULTS), parse_constant=lambda word: 1 / 0)
    assert [row["value"] for row in result] == [1.5, 1.5, None, None]
    assert [row["difference_stderr"] for row in result] == [0.1, 0.03, None, None]


def test_junit_is_valid_xml_for_any_text() -> None:
    root = ElementTree.fromstring(junit(RESULTS))
    assert [suite.get("name") for suite in root] == ["a.tailor", "b.tailor"]
    assert [case[0].tag for case in root.iter("testcase")] == [
        "system-out", "system-out", "failure", "error"
    ]  # fmt: skip
