"""The words for highlighters: all of the grammar's, each in one group."""

import re

import pytest

from gptailor.lang.parse import grammar, parser
from gptailor.lang.syntax_errors import beginning
from gptailor.plan.registry import METHODS, OBJECTIVES
from gptailor.plugins.highlight.word_groups import word_groups


def test_every_word_of_the_grammar_is_in_one_group():
    rules = "".join(line.split("//")[0] for line in grammar().splitlines(keepends=True))
    written = set(re.findall(r'"([a-z_]+)"', rules))
    results = [w for name in ("statement", "choice", "within") for w in word_groups()[name]]
    assert sorted(results) == sorted(written)
    assert len(results) == len(set(results))


def test_registries_are_groups():
    groups = word_groups()
    assert set(groups["method"]) == set(METHODS)
    assert set(groups["objective"]) == set(OBJECTIVES.names())
    assert {"density", "task_vectors", "yes"} <= set(groups["setting"])


@pytest.mark.parametrize(
    ("start", "there", "absent"),
    [("statement", "drop", "minimize"), ("item", "merge", "drop"), ("wish", "trials", "merge")],
)
def test_words_that_may_begin_a_statement(start, there, absent):
    assert there in beginning(parser(), start)
    assert absent not in beginning(parser(), start)
