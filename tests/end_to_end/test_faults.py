"""gptailor/plan/faults.md lists every code of the sources, and its examples trigger them."""

import re
from pathlib import Path

import pytest

from gptailor.lang.parse import read_json
from gptailor.plan.fault_pages import FAULTS_FILE
from gptailor.plan.faults import Source
from tests.checks.test_refused import faults_of
from tests.support.codes import all_codes
from tests.support.said import in_process

DOC = FAULTS_FILE.read_text(encoding="utf-8")
HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'

WITHOUT_EXAMPLE = {"S106", "S108", "P116", "M105", "M305", "M401", "M402", "M501", "M502", "P609"}
"""Bytes, sizes, commands, adapters, weights, scores, and a search: no text can show them."""


def sections() -> dict[str, str]:
    """Return the text below each code's heading."""
    parts = re.split(r"^### ([SPMC]\d{3}) ", DOC, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def examples() -> list[tuple[str, str, str]]:
    """Code, language and text of each example."""
    return [
        (code, *match)
        for code, section in sections().items()
        for match in re.findall(r"^```(tailor|json)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    ]


EXAMPLES = examples()


@pytest.mark.parametrize(("code", "language", "text"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_an_example_triggers_its_fault(code: str, language: str, text: str, family: Path) -> None:
    if language == "json":
        _, faults = read_json(Source("plan.json", text), family)
    else:
        whole = text.startswith(("tailor", "model base"))
        faults = faults_of(text if whole else HEAD + text, family)
    assert code in {fault.code for fault in faults}, [f"{f.code} {f.message}" for f in faults]
    warned = {fault.severity for fault in faults if fault.code == code} == {"warning"}
    title = sections()[code].splitlines()[0]
    assert warned == (code.startswith("M3") or title.endswith("(warning)"))


def test_every_code_of_a_plan_has_an_example() -> None:
    shown = {code for code, _, _ in EXAMPLES}
    assert {code for code in all_codes() if code[0] != "C"} - shown == WITHOUT_EXAMPLE


def test_every_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    run = in_process(capsys)
    for code in sorted(all_codes()):
        result = run("explain", code.lower())
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"{code}: ")
        assert "```" not in result.out
        assert ("Remedy: " in result.out) == (code[0] == "C")
    assert run("explain", "C101").out == (
        "C101: the folder is missing or unreadable\n\n"
        "Remedy: Correct the file that the message names, or download the folder again.\n"
    )
    shown = run("explain", "P601").out
    assert '\n    search { minimize loss("a.txt") }\n' in shown


@pytest.mark.parametrize(
    ("code", "known"), [("P699", "P601, P602"), ("nonsense", "a code looks like P601")]
)
def test_an_unknown_code_names_its_neighbours(
    capsys: pytest.CaptureFixture[str], code: str, known: str
) -> None:
    result = in_process(capsys)("explain", code)
    assert (result.code, known in result.err) == (2, True)


def test_the_documented_codes_are_those_of_the_sources() -> None:
    listed = set(sections()) | set(re.findall(r"^\| (C\d{3}) \|", DOC, re.MULTILINE))
    assert listed == all_codes()


def test_no_code_is_documented_twice() -> None:
    headings = re.findall(r"^(?:### |\| )([SPMC]\d{3}) ", DOC, re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_no_other_code_is_mentioned() -> None:
    assert set(re.findall(r"\b[SPMC]\d{3}\b", DOC)) <= all_codes()
