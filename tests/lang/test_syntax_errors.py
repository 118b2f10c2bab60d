"""The table of syntax errors: every sample is told its remedy, at its place."""

import re

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
def test_a_sample_is_told_its_remedy(lesson: Lesson, sample: str) -> None:
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
