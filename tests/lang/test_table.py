"""The table that the package holds is its grammar's, for the version of lark that made it."""

import pkgutil
import runpy
from pathlib import Path

import lark
import pytest

from gptailor.lang import parse

MAKE_TABLE = Path(__file__).parents[2] / "grammar" / "make_table.py"
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.tailor"))
SAVED = parse.saved_table()


@pytest.mark.skipif(SAVED["made_of"][0] != lark.__version__, reason="another lark made the table")
def test_the_table_is_made_of_this_grammar(anew: lark.Lark) -> None:
    made = runpy.run_path(str(MAKE_TABLE))
    assert made["table_of"](anew) == made["TABLE"].read_text(), "run python grammar/make_table.py"


@pytest.fixture(scope="module")
def anew() -> lark.Lark:
    """A parser of the grammar, not of the table."""
    return parse.parser_from_grammar(*parse.STARTS)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_both_parsers_see_the_same(path: Path, anew: lark.Lark) -> None:
    for piece in parse.split(parse.Source(path.name, path.read_text()))[0].items:
        if piece.block is None:
            text = path.read_text()[piece.start : piece.end]
            trees = [p.parse(text, start="statement") for p in (anew, parse.parser())]
            assert trees[0] == trees[1]


def test_a_table_of_another_grammar_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "table_key", lambda: ["0.0", "another"])
    parser = parse.parser.__wrapped__()
    assert parser.parse("drop L3", start="statement")
    assert hasattr(parser, "grammar")  # which a loaded one has not


UNREADABLE = (
    FileNotFoundError,
    PermissionError,
    b"",
    b'{"made_of": ["1',
    b"[]",
    b"{}",
    b"\xff\xfe",
)


@pytest.mark.parametrize("held", UNREADABLE)
def test_a_missing_or_damaged_table_is_made_from_the_grammar(
    monkeypatch: pytest.MonkeyPatch, held: bytes | type[OSError], anew: lark.Lark
) -> None:
    inside = pkgutil.get_data

    def get_data(package: str, name: str) -> bytes | None:
        if name != "tailor.json":
            return inside(package, name)
        if isinstance(held, bytes):
            return held
        raise held(name)

    monkeypatch.setattr(pkgutil, "get_data", get_data)
    monkeypatch.setattr(parse, "parser_from_grammar", lambda *_: anew)
    assert parse.parser.__wrapped__() is anew


def test_six_words_cannot_be_names() -> None:
    """So models are named by all others: `heal`, `full`, `rank`."""
    states = parse.parser().parser.parser._parse_table.states  # type: ignore[attr-defined]
    words = {t.name for t in parse.parser().terminals if t.pattern.value.isalpha()}
    beside = {word for row in states.values() if "NAME" in row for word in words & row.keys()}
    assert beside == {"ONE", "ANY", "BY", "FROM", "MINIMIZE", "MAXIMIZE"}


def test_signs_have_a_spelling() -> None:
    assert parse.spelled()["EQUAL"] == "="
    assert "NAME" not in parse.spelled()
