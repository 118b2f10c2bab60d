"""Any text is accepted, or refused with faults that lie inside it."""

import json
from functools import cache
from pathlib import Path

import lark
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark

from gptailor.lang.format import format_plan, format_text
from gptailor.lang.parse import parse, parser_from_grammar, read_bytes, read_json, read_text
from gptailor.plan.bounds import MOST_FAULTS
from gptailor.plan.faults import Fault, Source, errors, to_github, to_json, to_text
from gptailor.plan.plan import Plan
from tests.support.strategies import plans
from tests.support.thorough import drawn


@cache
def whole_files() -> lark.Lark:
    """A parser of whole files, of the grammar itself."""
    return parser_from_grammar("start")


HEAD = 'tailor 1\nmodel base = "./b"\nmodel math = "./m"\n'

# ------------------------------------------------------------------ texts drawn from the grammar

NAMES = [
    "base",
    "math",
    "attn",
    "mlp",
    "linear",
    "slerp",
    "ties",
    "float32",
    "nll",
    "kl",
    "t",
    "heal",
    "full",
    "rank",
    "größe",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "0.5",
    "-1",
    "+3",
    "1e999",
    "1e-3",
    "9" * 400,
    "0" * 5000,
    "0.30",
    "65536",
]
LAYERS = ["L0", "L1", "L2", "L3", "L9", "L07", "L9999", "L10000", "L" + "9" * 30]
STRINGS = ['"./b"', '"org/name"', '""', '"a # b"', '"ünï ;{}()"']


def words(result: list[str]) -> st.SearchStrategy[str]:
    """These words, a blank behind them so that they don't run into the next."""
    return st.sampled_from(result).map(lambda word: f"{word} ")


def drawn_texts() -> st.SearchStrategy[str]:
    explicit = {
        terminal.name: st.just(f"{terminal.pattern.value} ")
        for terminal in whole_files().terminals
        if isinstance(terminal.pattern, lark.lexer.PatternStr)
    }
    explicit |= {
        "NAME": words(NAMES),
        "NUMBER": words(NUMBERS),
        "LAYER": words(LAYERS),
        "STRING": words(STRINGS),
        "_NL": st.sampled_from(["\n", "\r\n", "\n\n"]),
        "COMMENT": st.just("# a comment\n"),
    }
    return from_lark(whole_files(), start="start", explicit=explicit)


DRAWN_TEXTS = st.deferred(drawn_texts)


def outcome(text: str) -> list[Fault]:
    """The faults of a text; all of them can be shown, and lie inside it."""
    source = Source("drawn.tailor", text)
    plan, faults = read_text(source, Path())
    assert isinstance(plan, Plan)
    for fault in faults:
        assert fault.span is not None, fault
        assert 0 <= fault.span.start <= fault.span.end <= len(text), fault
        for also in fault.also:
            assert also.span is None or also.span.end <= len(text)
        assert to_text(fault)
        assert to_github(fault).count("\n") == 0
    assert to_json(faults)
    return faults


def is_of_the_grammar(text: str) -> bool:
    try:
        whole_files().parse(text)
    except lark.UnexpectedInput:
        return False
    return True


@example('bridge L10000 on "./b"')
@given(DRAWN_TEXTS)
@settings(max_examples=drawn(200))
def test_a_text_of_the_grammar_is_accepted_or_refused(text: str) -> None:
    faults = outcome(text)
    if not errors(faults):
        plan, _ = read_text(Source("drawn.tailor", text), Path())
        again, more = read_text(Source("formatted.tailor", format_plan(plan)), Path())
        assert not errors(more)
        assert again == plan


@given(DRAWN_TEXTS)
@settings(max_examples=drawn(200))
def test_the_parser_by_pieces_agrees_with_the_grammar(text: str) -> None:
    _, faults = parse(Source("drawn.tailor", text))
    assert (not faults) == is_of_the_grammar(text), faults


PUNCTUATION = [*"\n;(){},.=@+", "..", "# c\n", '"']
KEYWORDS = (
    "from merge drop any window one of by stack search scale model maybe tied limit layers tailor "
    "bridge on embed trials"
)
TOKENS = st.sampled_from(
    [*NAMES, *LAYERS[:5], *NUMBERS[:6], *STRINGS, *PUNCTUATION, *KEYWORDS.split()]
)


@given(st.lists(TOKENS, max_size=24).map(" ".join))
@settings(max_examples=drawn(300))
def test_any_words_are_accepted_or_refused_as_the_grammar_does(text: str) -> None:
    outcome(text)
    _, faults = parse(Source("drawn.tailor", text))
    assert (not faults) == is_of_the_grammar(text), faults


@given(st.text(max_size=60))
@settings(max_examples=drawn(300))
def test_any_text_is_read(text: str) -> None:
    outcome(text)
    outcome(HEAD + text)
    format_text(Source("drawn.tailor", text))


@given(plans(), st.data())
def test_a_plan_with_some_bytes_changed_is_read(plan: Plan, data: st.DataObject) -> None:
    raw = bytearray(format_plan(plan).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["change", "remove", "double"]))
        if kind == "change":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "remove" and len(raw) > 1:
            del raw[at]
        else:
            raw[at:at] = raw[at : at + 9]
    result, faults = read_bytes(bytes(raw), "changed.tailor", Path())
    assert result is not None or errors(faults)
    try:
        text = bytes(raw).removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        assert [fault.code for fault in faults] == ["S106"]
        return
    if text.lstrip()[:1] != "{":
        outcome(text)


# ------------------------------------------------------------------------------- bad input by name


def codes(text: str | bytes) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode()
    return [fault.code for fault in read_bytes(raw, "bad.tailor", Path())[1]]


BAD = {
    "an empty file": ("", ["P103", "P101"]),
    "only comments": ("# one\n# two", ["P103", "P101"]),
    "only blank lines": ("\n\n \t\n;;;\n", ["P103", "P101"]),
    "no base": ('tailor 1\nmodel math = "./m"\n', ["P103"]),
    "an adapter on itself": (HEAD + 'model a = a + "./a"\n', ["P107"]),
    "adapters in a circle": (HEAD + 'model a = b + "./a"\nmodel b = a + "./b"\n', ["P107"]),
    "a descending range": (HEAD + "L9..L0 from math", ["P201"]),
    "the same layer twice": (HEAD + "L1, L1 from math", ["P202"]),
    "a layer decided twice": (HEAD + "L1 from math; L1 from base", ["P207"]),
    "three sources and one number": (HEAD + "merge(L1 base, L1 math, L1 math, 0.5)", ["P308"]),
    "a share past its bounds": (HEAD + "L1 from base, math by slerp(1.5)", ["P303"]),
    "no number": (HEAD + "scale L1 by nan", ["P114"]),
    "an infinite number": (HEAD + "scale L1 by 1e999", ["P306"]),
    "a long integer": (HEAD + f"scale L1 by {'1' * 350}", ["P306"]),
    "a longer integer": (HEAD + f"scale L1 by {'1' * 5000}", ["P306"]),
    "digits of another alphabet": (HEAD + "scale L1 by ٣", ["S103"]),
    "a layer of another alphabet": (HEAD + "L٣ from math", ["S101"]),
    "a null byte": (HEAD + "L1 \0 from math", ["S101"]),
    "invalid UTF-8": (HEAD.encode() + b"\xff\xfe", ["S106"]),
    "UTF-16": ("tailor 1".encode("utf-16"), ["S106"]),
    "a carriage return alone": (HEAD + "L1 from math\rL2 from math", ["S101"]),
    "an open quote": ('tailor 1\nmodel base = "./b\n', ["S104"]),
    "an open parenthesis": (HEAD + "merge(L1 base, L1 math\nL2 from math\n", ["S104"]),
    "an open brace": (HEAD + "stack {\nL1 base\n", ["S104"]),
    "braces in braces": (HEAD + "stack { stack { L1 base } }", ["S102"]),
    "many parentheses": (HEAD + "(" * 3000, ["S104"] * 3000),
    "many braces": (HEAD + "{" * 3000, ["S104"] * 3000),
    "JSON cut off": ('{"version": 1', ["S107"]),
    "JSON with an unknown key": ('{"modles": {}}', ["S107"]),
    "JSON nested deeply": ('{"models": ' * 3000, ["S107"]),
    "JSON of no plan": (
        '{"layers": [{"position": -1, "recipe": {"take": {"model": "base"}}}]}',
        None,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    text, expected = BAD[name]
    result = codes(text)
    if name.startswith(("an open", "many")):
        assert set(expected or ()) <= set(result)
    elif expected is None:
        assert set(result) == {"S107"}
    else:
        assert result == expected


GOOD = {
    "a byte-order mark": b"\xef\xbb\xbf" + HEAD.encode(),
    "CRLF": (HEAD + "L1 from math\n# a comment\nL2 from math\n").replace("\n", "\r\n").encode(),
    "tabs": (HEAD + "\tL1\tfrom\tmath\t# why\t\n").encode(),
    "no newline at the end": (HEAD + "L1 from math").encode(),
    "names of other alphabets": (
        HEAD + 'model größe = "./g"\nmodel 数学 = "./z"\nL1 from 数学'
    ).encode(),
    "newlines in parentheses": (HEAD + "merge(\nL1 base,\n\nL1 math, # c\n0.5\n)").encode(),
    "a 1 MB comment": (HEAD + "# " + "x" * 1_000_000).encode(),
    "a 1 MB list": (
        HEAD + "drop " + ", ".join(f"L{n}" for n in range(9999)) + " " * 900_000
    ).encode(),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_input_is_read(name: str) -> None:
    assert codes(GOOD[name]) == []


@pytest.mark.parametrize("line", ["x" * 1_000_000, "L0 from " + "y" * 1_000_000, '"' * 100_000])
def test_a_long_line_is_refused_in_few_words(line: str) -> None:
    _, faults = read_text(Source("long.tailor", HEAD + line), Path())
    assert errors(faults)
    assert all(len(to_text(fault)) < 3_000_000 for fault in faults[:3])
    assert len(faults[0].message) < 300 or faults[0].code == "P106"


@pytest.mark.parametrize("lines", ["L{n} from math\n", "L0 from math\n"])
def test_many_statements_are_read(lines: str) -> None:
    text = HEAD + "".join(lines.format(n=n) for n in range(2_000))
    plan, faults = read_text(Source("many.tailor", text), Path())
    assert len(plan.layers) == 2_000
    assert len(faults) == (0 if "{n}" in lines else MOST_FAULTS + 1)


def test_many_items_are_read() -> None:
    text = HEAD + "stack {\n" + "L0 math\n" * 2_000 + "}\n"
    plan, faults = read_text(Source("many.tailor", text), Path())
    assert not faults
    assert plan.stack is not None
    assert len(plan.stack.items) == 2_000


def test_the_layers_that_a_file_names_are_bounded() -> None:
    sources = ", ".join(["L0..L9999 math"] * 22)
    assert codes(f"{HEAD}merge({sources})") == ["P116"]


def test_faults_are_unique_and_in_the_order_of_the_text() -> None:
    text = HEAD + "L9..L0 from math\nL1 from nowhere\ndrop any 3 of L1\nfoo\nL1 from math, base\n"
    faults = outcome(text)
    starts = [fault.span.start for fault in faults if fault.span]
    assert starts == sorted(starts)
    assert len({(f.code, f.message, f.span) for f in faults}) == len(faults)


def test_a_syntax_fault_doesnt_hide_the_next_statement() -> None:
    assert codes(HEAD + "L1 frm math\nL2 from nowhere\n%%\n") == ["S101", "S102"]
    assert codes(HEAD + "L1 frm math\nL2..L0 from math\n") == ["S101", "P201"]


def test_a_json_plan_is_read_from_its_bytes() -> None:
    plan, faults = read_bytes(
        b'\xef\xbb\xbf {"models": {"base": {"source": "./b"}}}', "p.json", Path()
    )
    assert not faults
    assert plan == read_text(Source("p.tailor", 'tailor 1\nmodel base = "./b"'), Path())[0]


JSON_KEYS = st.sampled_from(["models", "layers", "version", "source", "recipe", "take", "any_of"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_a_plan_or_refused(value: object) -> None:
    plan, faults = read_json(Source("p.json", json.dumps(value)), Path())
    assert plan is not None or errors(faults)


def test_a_fault_of_a_chat_template_is_at_its_model() -> None:
    text = HEAD + "chat_template from code\n"
    faults = errors(outcome(text))
    at = [text[f.span.start : f.span.end] for f in faults if f.span is not None]
    assert at == ["code"], faults


def test_the_help_for_two_texts_suggests_joining_them() -> None:
    cuts = 'vocabulary 100 on "a.txt"\nvocabulary 100 on "b.txt"\n'
    [twice] = errors(outcome(HEAD + cuts))
    assert twice.help == "keep one of the two; to use both texts, join them in one file"
    [twice] = errors(outcome(HEAD + "dtype float32\ndtype float16\n"))
    assert twice.help == "keep one of the two"
