"""Each refused plan marks its lines with the codes that it gets; exactly those are reported."""

import re
from collections import Counter
from pathlib import Path

import pytest

import gptailor
from gptailor.lang.parse import read_text
from gptailor.plan.faults import Fault, PlanError, Source, errors, to_text
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.codes import all_codes, plan_codes

REFUSED = sorted((Path(__file__).parents[1] / "refused").glob("*.tailor"))

ELSEWHERE = {
    "S106": "bytes that no text file of ours can hold: tests/lang/test_reading.py",
    "S107": "JSON: tests/lang/test_reading.py",
    "S108": "more errors than a file should have: tests/checks/test_sizes.py",
    "P116": "plans that are too large: tests/checks/test_sizes.py",
    "M105": "the command line's --model",
    "M305": "adapters",
    "M232": "plans in other files: tests/end_to_end/test_nested_models.py",
    "M401": "weights: tests/program/test_run.py",
    "M402": "weights: tests/program/test_run.py",
    "M501": "scores: tests/plugins/expect/test_command.py",
    "M502": "scores: tests/plugins/expect/test_command.py",
    "P218": "JSON alone: tests/checks/test_json.py",
    "P219": "JSON alone: tests/checks/test_json.py",
    "P609": "a search: tests/searching/test_limits.py",
    "P508": "JSON alone: tests/checks/test_json.py",
}
"""Codes that no refused file can show, and the tests that show them."""


def marks(text: str) -> Counter[tuple[int, str, str]]:
    """Return the lines, severities and codes that a text's comments announce."""
    marked: Counter[tuple[int, str, str]] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        severity = "error"
        for word in re.findall(r"fault:|warning:|[SPMC]\d{3}\b", line.partition("#")[2]):
            if word.endswith(":"):
                severity = "warning" if word == "warning:" else "error"
            else:
                marked[number, severity, word] += 1
    return marked


def faults_of(text: str, folder: Path) -> list[Fault]:
    """Return all faults of a plan on its way to being compiled."""
    plan, faults = read_text(Source("refused.tailor", text), folder)
    return faults if errors(faults) else faults_against_models(plan)


def faults_against_models(plan: Plan) -> list[Fault]:
    faults = gptailor.check(plan)
    if errors(faults):
        return faults
    try:
        prepare(plan)
    except PlanError as error:
        faults += error.faults
    return faults


def line_of(fault: Fault) -> int:
    if fault.source is None or fault.span is None:
        return 1
    return fault.source.position(fault.span.start)[0]


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_exactly_the_marked_faults_are_reported(path: Path, family: Path) -> None:
    text = path.read_text(encoding="utf-8")
    faults = faults_of(text, family)
    reported = Counter((line_of(f), f.severity, f.code) for f in faults)
    assert reported == marks(text), "\n\n".join(to_text(fault) for fault in faults)


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_every_fault_is_shown_under_its_line(path: Path, family: Path) -> None:
    for fault in faults_of(path.read_text(encoding="utf-8"), family):
        assert to_text(fault).startswith(f"{fault.severity}[{fault.code}]: ")
        assert not re.match(r"[A-Z][a-z]", fault.message)
        assert not fault.message.rstrip().endswith(".")


def test_every_code_of_a_plan_is_refused_somewhere() -> None:
    shown = {code for path in REFUSED for _, _, code in marks(path.read_text(encoding="utf-8"))}
    assert plan_codes() - shown == set(ELSEWHERE) & all_codes()


def test_a_fault_with_a_remedy_names_it(family: Path) -> None:
    """A type of files that another program makes, and a bridge that the model can't have."""
    head = 'tailor 1\nmodel base = "./unknown"\n'
    [fault] = faults_of(f"{head}expect bytes(gguf=q2_k) <= 1M\n", family)
    assert (fault.code, fault.help) == ("P603", "make it from an f16 file with llama-quantize")
    faults = faults_of((REFUSED[0].parent / "bridge_unknown.tailor").read_text(), family)
    helps = [fault.help for fault in faults if fault.code == "M219"]
    assert helps == ["remove 'bridge'"]
