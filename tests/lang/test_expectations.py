"""`expect`: what its texts mean, and how those that mean nothing are refused."""

import json
from pathlib import Path

import pytest

from gptailor.lang.format import format_plan, format_text
from gptailor.lang.parse import read_json, read_text
from gptailor.plan.faults import Source, errors, to_text
from gptailor.plan.plan import Plan

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'

MEANT = [
    ('expect nll("t") <= 1.1 * base', ("nll", "<=", 1.1, "base")),
    ('expect nll("t") < base', ("nll", "<", None, "base")),
    ('expect multiple_choice("q") >= 0.5', ("multiple_choice", ">=", 0.5, None)),
    ('expect multiple_choice("q")>math', ("multiple_choice", ">", None, "math")),
    ("expect parameters() <= 110M", ("parameters", "<=", 110_000_000, None)),
    ("expect kv_cache() <= 0.75 * base", ("kv_cache", "<=", 0.75, "base")),
    ("expect latency() < 1.5 * base", ("latency", "<", 1.5, "base")),
    ('expect kl("t", from=math) <= 0.2', ("kl", "<=", 0.2, None)),
    ('expect margin("q") >= -0.5', ("margin", ">=", -0.5, None)),
    ('expect nll("t") > base', ("nll", ">", None, "base")),  # it has forgotten something
    ('expect generate("a") >= 0.9 * base', ("generate", ">=", 0.9, "base")),
]

REFUSED = [
    ('expect nll("t") = 1', "S101", "then '<=', '>=', '<' or '>', then a bound"),
    ('expect nll("t")', "S101", "then '<=', '>=', '<' or '>', then a bound"),
    ("expect nll <= 1", "S101", "methods and objectives have parentheses: nll()"),
    ('expect nll("t") <= base * 1.1', "S101", "as in 1.1 * base"),
    ('maybe expect nll("t") <= 1', "S101", "expected"),
    ('search { expect nll("t") <= 1 }', "S102", "in it write 'require'"),
    ('expect accuracy("q") >= 0.5', "P601", "there is no objective 'accuracy'"),
    ('expect nll("t", form=base) <= 1', "P603", "'nll' has no argument 'form'"),
    ("expect nll() <= 1", "P604", "'nll' needs the argument 'file'"),
    ('expect parameters("t") <= 1M', "P305", "'parameters' takes no arguments"),
    ('expect nll("t") <= 1.1 * bace', "P106", "did you mean 'base'?"),
    ('expect nll(0.1..0.3) <= 1', "P605", "an objective can't contain choices or curves"),
    ('expect nll("t") <= 0.1..0.3', "S101", "expected"),
    ('expect nll("t") <= 1; expect nll("./t") <= 1.0', "P607",
     "the expectation 'nll' is given twice"),
    ('search { require nll("t") < 1 }', "S101", "write '<=' or '>=' before the bound"),
]  # fmt: skip


def read(text: str) -> tuple[Plan, str]:
    """The plan of a text below the head, and its faults in words."""
    plan, faults = read_text(Source("p.tailor", HEAD + text), Path())
    return plan, "\n".join(map(to_text, errors(faults)))


@pytest.mark.parametrize(("text", "meant"), MEANT, ids=[text for text, _ in MEANT])
def test_an_expectation_is_read_and_written(text: str, meant: tuple[object, ...]) -> None:
    plan, faults = read(text)
    assert not faults
    [entry] = plan.expects
    assert (entry.name, entry.sign, entry.bound.number, entry.bound.of) == meant
    assert read_text(Source("again", format_plan(plan)), Path())[0] == plan
    again, _ = read_json(Source("again", plan.model_dump_json(exclude_defaults=True)), Path())
    assert again == plan


@pytest.mark.parametrize(("text", "code", "words"), REFUSED, ids=[text for text, _, _ in REFUSED])
def test_invalid_expectations_are_refused(text: str, code: str, words: str) -> None:
    _, faults = read(text)
    assert f"error[{code}]" in faults
    assert words in faults


def test_expectations_keep_their_order_and_their_comments() -> None:
    lines = [
        "# how large it may be",
        "expect parameters() <= 110M",
        'expect nll("b.txt") <= base',
        'expect nll("a.txt") <= base  # the text that matters',
        "expect kv_cache() <= 1k",
    ]
    text = "\n".join([HEAD, *lines, ""])
    formatted, faults = format_text(Source("p", text))
    assert not faults
    assert formatted == f"{HEAD.replace('1', '1' + chr(10), 1)}\n" + "\n".join([*lines, ""])
    before, after = (read_text(Source("p", t), Path())[0] for t in (text, formatted))
    assert before == after


def test_a_strict_requirement_in_json_is_refused() -> None:
    body = {
        "models": {"base": {"source": "./base"}},
        "search": {"requires": [{"name": "parameters", "sign": "<", "bound": {"number": 1}}]},
    }
    plan, faults = read_json(Source("p", json.dumps(body)), Path())
    assert plan is None
    assert {fault.code for fault in faults} == {"S107"}


def test_a_word_of_the_statement_may_name_a_model() -> None:
    plan, faults = read('model expect = "./math"\nL1 from expect\nexpect nll("t") <= expect')
    assert not faults
    assert plan.expects[0].bound.of == "expect"
