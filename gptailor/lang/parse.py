"""A text into its tree, each statement by the grammar; after a fault it goes on at the next one."""

import codecs
import functools
import importlib.resources
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lark
from lark import Lark, TextSlice, Token
from lark.lexer import LexerState, LexerThread, LineCounter

from gptailor.lang import syntax_errors as expected
from gptailor.lang import tree
from gptailor.lang.split import Piece, Pieces, split
from gptailor.lang.tree import Marked, built
from gptailor.plan.faults import Fault, Origin, Source, Span, locate


class _Parentheses:
    """Newlines inside parentheses are blank."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth = 0
        for token in stream:
            depth += {"LPAR": 1, "RPAR": -1}.get(token.type, 0)
            if token.type != "_NL" or depth <= 0:
                yield token


class _Thread(LexerThread):
    """Starts at a statement without counting the lines before it: spans are offsets."""

    @classmethod
    def from_text(cls, lexer: Any, text_or_slice: Any) -> "_Thread":
        text = TextSlice.cast_from(text_or_slice)
        counter = LineCounter("\n")  # type: ignore[no-untyped-call]
        counter.char_pos = text.start
        return cls(lexer, LexerState(text, counter))


def grammar() -> str:
    """The text of the grammar that the package holds."""
    return importlib.resources.files("gptailor.lang").joinpath("tailor.lark").read_text("utf-8")


@functools.cache
def parser() -> Lark:
    """The parser; it starts at `start` (a file), `statement`, `item` or `wish`."""
    return Lark(
        grammar(),
        parser="lalr",
        start=["start", "statement", "item", "wish"],
        postlex=_Parentheses(),
        propagate_positions=True,
        maybe_placeholders=False,
        _plugins={"LexerThread": _Thread},
    )


def parse(source: Source) -> tuple[tree.File, list[Fault]]:
    """The tree of a text, and its syntax faults. What has a fault is not in the tree."""
    pieces, faults = split(source)
    statements = tuple(_statements(source, pieces, "statement", faults))
    file = tree.File(statements, tuple(pieces.closing))
    return file, locate(faults, Origin(source, Path()))


def decode_source(raw: bytes, name: str) -> Source:
    """Bytes as a source: UTF-8, with or without a byte-order mark; raises UnicodeDecodeError."""
    return Source(name, raw.removeprefix(codecs.BOM_UTF8).decode("utf-8"))


# --------------------------------------------------------------------------------- piece by piece


def _statements(
    source: Source, pieces: Pieces, start: str, faults: list[Fault]
) -> Iterator[tree.Statement]:
    for piece in pieces.items:
        statement = _statement(source, piece, start, faults)
        if statement is not None:
            yield replace(statement, above=tuple(piece.above), behind=piece.behind)


def _statement(
    source: Source, piece: Piece, start: str, faults: list[Fault]
) -> tree.Statement | None:
    if piece.broken:
        return None
    if piece.block is not None:
        return _block(source, piece, piece.block, faults)
    try:
        return _parsed(source, piece.start, piece.end, start)
    except lark.UnexpectedInput as error:
        faults.append(expected.fault(source, error, Span(piece.start, piece.end), start))
        return None


def _parsed(source: Source, start: int, end: int, rule: str) -> tree.Statement:
    slice_ = TextSlice(source.text, start, end)
    parsed = built(parser().parse(slice_, start=rule))
    body = parsed if isinstance(parsed, Marked) else Marked(parsed)
    return tree.Statement(body.body, Span(start, end), body.tied, body.maybe)


def _block(
    source: Source, piece: Piece, inside: Pieces, faults: list[Fault]
) -> tree.Statement | None:
    head = source.text[piece.start : piece.brace].strip()
    rule = {"stack": "item", "search": "wish"}.get(head)
    if rule is None:
        message = f"'{head}' has no block" if head else "a block has no name"
        where = Span(piece.start, piece.brace) if head else Span(piece.brace, piece.brace + 1)
        faults.append(
            Fault("S105", message, span=where, help="only 'stack' and 'search' have one in { }")
        )
        return None
    if inside.closed and piece.end > inside.end:
        rest = Span(inside.end, piece.end)
        faults.append(
            Fault(
                "S105",
                "a statement goes on after its block",
                span=Span(rest.start + _blanks(source, rest), rest.end),
                help="start the next statement on a new line or after ';'",
            )
        )
    found: list[Fault] = []
    statements = tuple(_statements(source, inside, rule, found))
    faults += found if inside.closed else []
    name = tree.Word(head, Span(piece.start, piece.start + len(head)))
    body = tree.Block(name, statements, tuple(inside.closing))
    return tree.Statement(body, Span(piece.start, inside.end))


def _blanks(source: Source, span: Span) -> int:
    text = source.text[span.start : span.end]
    return len(text) - len(text.lstrip())
