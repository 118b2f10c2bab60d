"""Pygments colours Tailor text by the words that the parser sees."""

import tomllib
from pathlib import Path

import pytest
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Error, Keyword, Name, Number, String, _TokenType

from gptailor.lang.parse import parser
from gptailor.plugins.highlight.lexer import TailorLexer
from gptailor.plugins.highlight.word_groups import word_groups

ROOT = Path(__file__).parents[3]
TEXTS = sorted([*(ROOT / "tests/golden").glob("*.tailor"), *(ROOT / "plans").rglob("*.tailor")])
KINDS = {"LAYER": Name.Constant, "NUMBER": Number, "SIZE": Number, "STRING": String.Double}


def coloured(text: str) -> list[tuple[int, _TokenType, str]]:
    """Offset, kind and text of each token but blanks and comments."""
    result = TailorLexer(stripnl=False, ensurenl=False).get_tokens_unprocessed(text)
    return [item for item in result if item[2].strip() and item[1] is not Comment.Single]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_a_plan_is_coloured_without_a_gap(path: Path) -> None:
    text = path.read_text("utf-8")
    results = list(TailorLexer(stripnl=False, ensurenl=False).get_tokens_unprocessed(text))
    assert "".join(value for _, _, value in results) == text
    assert [value for _, kind, value in results if kind is Error] == []


@pytest.mark.parametrize(
    "statement",
    [
        'model math = base + "./adapters/math" @ "main"',
        "L12, L14..L15.attn.q from one of math, code by ties(density=0.6, seed=3)",
        "maybe merge(L12 code, L12 chat, 0.5..0.7)",
        "drop any 4..12 of L2..L28",
        "repeat window 3 of L10..L30 times 2",
        'bridge L11 on "text.jsonl" tokens 65536 ridge 1e-2',
        'heal from chat on "text.jsonl" rank full',
        "others from base, math by slerp(curve(0, 0.5, 1) over L3..L9)",
        'chat_template "chatml"',
        "whole from math, code by linear()",
    ],
)
def test_words_are_coloured_as_the_parser_takes_them(statement: str) -> None:
    kinds = {(at, value): kind for at, kind, value in coloured(statement)}
    tokens = parser().parse_interactive(statement, "statement").exhaust_lexer()
    assert len(tokens) > 1
    for token in tokens:
        kind = kinds.get((token.start_pos, str(token)))
        if token.type in KINDS:
            assert kind is KINDS[token.type], token
        elif token.type == "NAME":
            assert kind in Name, token
        elif token.isidentifier():
            assert kind is (Keyword.Pseudo if token in word_groups()["choice"] else Keyword), token


def test_an_argument_may_have_the_name_of_a_keyword() -> None:
    kinds = {value: kind for _, kind, value in coloured("L1 from a, b by dare(seed=3)")}
    assert (kinds["from"], kinds["seed"], kinds["dare"]) == (
        Keyword,
        Name.Attribute,
        Name.Function,
    )


def test_unknown_characters_are_coloured_as_errors() -> None:
    assert [kind for _, kind, value in coloured("L1 from “math”") if value in "“”"] == [
        Error,
        Error,
    ]


def test_pygments_finds_the_lexer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    home = f"{TailorLexer.__module__}:{TailorLexer.__name__}"
    assert project["entry-points"]["pygments.lexers"] == {"tailor": home}
    assert isinstance(get_lexer_for_filename("plan.tailor"), TailorLexer)
