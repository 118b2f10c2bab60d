"""The table of syntax errors: every sample is told its remedy, at its place."""

import re

import pytest

from gptailor.lang import parse
from gptailor.lang.syntax_errors import LESSONS, Lesson
from gptailor.plan.faults import Source

SAMPLES = [(lesson, sample) for lesson in LESSONS for sample in lesson.samples]
IN_A_FILE = {"statement": "{}", "item": "stack {{ {} }}", "wish": "search {{ {} }}"}


@pytest.mark.parametrize(("lesson", "sample"), SAMPLES, ids=[sample for _, sample in SAMPLES])
def test_a_sample_is_told_its_remedy(lesson: Lesson, sample: str) -> None:
    before, characters, after = re.split("[«»]", sample)
    text = IN_A_FILE.get(lesson.start, "search {{ minimize {} }}")
    start = text.index("{}") if lesson.start == "statement" else len(text.partition("{}")[0]) - 1
    text = text.format(before + characters + after)
    [fault] = parse.parse(Source("sample.tailor", text))[1]
    assert fault.code in {"S101", "S102", "S103"}
    remedy = re.escape(lesson.remedy).replace(re.escape("{word}"), r"\w+")
    assert re.fullmatch(remedy, fault.help), fault.help
    assert fault.span is not None
    marked = range(start + len(before), start + len(before) + max(1, len(characters)) + 1)
    assert fault.span.start in marked
