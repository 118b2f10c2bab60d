"""The table of syntax errors: every sample is told its remedy, at its place."""

import re
from pathlib import Path

import pytest

from gptailor.lang import parse
from gptailor.lang.syntax_errors import LESSONS, Lesson
from gptailor.plan.faults import Fault, PlanError, Source

SAMPLES = [(lesson, sample) for lesson in LESSONS for sample in lesson.samples]
IN_A_FILE = {"statement": "{}", "item": "stack {{ {} }}", "wish": "search {{ {} }}"}


def faults_of(text: str, start: str) -> list[Fault]:
    """The faults of a file's text, or of an objective's by itself."""
    if start != "objective":
        return parse.parse(Source("sample.tailor", text))[1]
    with pytest.raises(PlanError) as caught:
        parse.read_objective(text)
    return caught.value.faults


@pytest.mark.parametrize(("lesson", "sample"), SAMPLES, ids=[sample for _, sample in SAMPLES])
def test_each_sample_has_its_remedy(lesson: Lesson, sample: str) -> None:
    before, characters, after = re.split("[«»]", sample)
    text = IN_A_FILE.get(lesson.start, "{}")
    start = text.index("{}") if text == "{}" else len(text.partition("{}")[0]) - 1
    text = text.format(before + characters + after)
    [fault] = faults_of(text, lesson.start)
    assert fault.code in {"S101", "S102", "S103"}
    remedy = re.escape(lesson.remedy).replace(re.escape("{word}"), r"\w+")
    assert re.fullmatch(remedy, fault.help), fault.help
    assert fault.span is not None
    marked = range(start + len(before), start + len(before) + max(1, len(characters)) + 1)
    assert fault.span.start in marked


def test_a_brace_that_ends_a_block_is_never_expected_in_a_statement() -> None:
    for text in ('expect nll("t") <= 97%', 'search { require nll("t") <= 97% }'):
        [fault] = faults_of(text, "statement")
        assert fault.message == "expected '*', found '%'"


YAML = "slices:\n  - sources:\n      - model: a\nmerge_method: linear\n"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [("a.yml", YAML, 1), ("a.txt", "# why\ndtype: float32\n" + YAML, 3),
     ("<stdin>", "tailor 1\n" + YAML, 2), ("moe.yaml", "experts:\n  - x: 1\n", 1)],
)  # fmt: skip
def test_a_mergekit_file_is_one_fault_that_names_import(name: str, text: str, line: int) -> None:
    [fault] = parse.read_bytes(text.encode(), name, Path())[1]
    assert (fault.code, fault.message) == ("S102", "expected a plan, got a mergekit file")
    assert fault.span is not None
    assert fault.source is not None
    assert fault.source.position(fault.span.start)[0] == line
    file = "FILE" if name == "<stdin>" else name
    assert fault.help == f"convert it: gptailor import {file} -o plan.tailor"


def test_a_plan_may_have_a_yaml_suffix() -> None:
    text = 'tailor 1\nmodel base = "a"\n'
    assert parse.read_bytes(text.encode(), "a.yml", Path())[1] == []
    [fault] = parse.read_bytes(f"{text}L1 fom base\n".encode(), "a.yml", Path())[1]
    assert fault.help == "did you mean 'from'?"
