"""A text into its tree, each statement by the grammar; after a fault it goes on at the next one."""

import codecs
import functools
import importlib.resources
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lark
from lark import Lark, TextSlice, Token, Tree
from lark.lexer import LexerState, LexerThread, LineCounter
from lark.tree import Meta

from gptailor.diagnostics import Fault, Origin, Source, Span, locate
from gptailor.lang import expected, tree
from gptailor.lang.split import Piece, Pieces, split
from gptailor.plan import LARGEST_LAYER


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


def decode(raw: bytes, name: str) -> Source:
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
    parsed = _built(parser().parse(slice_, start=rule))
    body = parsed if isinstance(parsed, _Marked) else _Marked(parsed)
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


# -------------------------------------------------------------------------------- tokens to nodes


@dataclass(frozen=True, slots=True)
class _Marked:
    """A body with the words before it."""

    body: Any
    tied: Span | None = None
    maybe: Span | None = None


def _span(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


def _of(meta: Meta) -> Span:
    return Span(meta.start_pos, meta.end_pos)


def number(token: Token) -> tree.Fixed:
    """A number as it was written: an integer if it has no point and no exponent."""
    digits = str(token)
    value: int | float = float(digits)
    if math.isfinite(value) and digits.lstrip("+-").isdigit():
        value = int(digits)
    return tree.Fixed(value, _span(token))


def _layer(token: Token) -> tree.LayerWord:
    """A layer's number; above the largest there is, the next one, which the lowering refuses."""
    digits = token[1:].lstrip("0") or "0"
    known = len(digits) <= len(str(LARGEST_LAYER))
    return tree.LayerWord(int(digits) if known else LARGEST_LAYER + 1, _span(token))


def _built(node: "Tree[Token]") -> Any:
    """The node that a rule's tree stands for, made from the leaves up."""
    children = [_built(child) if isinstance(child, Tree) else child for child in node.children]
    return getattr(_BUILDER, node.data)(node.meta, children)


class _Builder:
    """The grammar's rules as nodes; a rule's name is its method's."""

    def start(self, meta: Meta, children: list[Any]) -> list[Any]:
        return children

    def overlay(self, meta: Meta, children: list[Any]) -> _Marked:
        marks = {child.type: _span(child) for child in children[:-1]}
        return _Marked(children[-1], marks.get("TIED"), marks.get("MAYBE"))

    item = overlay
    item.__doc__ = None

    def name(self, meta: Meta, children: list[Token]) -> tree.Word:
        return tree.Word(str(children[0]), _span(children[0]))

    where = name

    def string(self, meta: Meta, children: list[Token]) -> tree.String:
        return tree.String(str(children[0])[1:-1], _span(children[0]))

    # --- numbers

    def fixed(self, meta: Meta, children: list[Token]) -> tree.Fixed:
        return number(children[0])

    def interval(self, meta: Meta, children: list[Token]) -> tree.Between:
        return tree.Between(number(children[0]), number(children[1]), _of(meta))

    def one_numbers(self, meta: Meta, children: list[Token]) -> tree.OneNumber:
        return tree.OneNumber(tuple(number(child) for child in children), _of(meta))

    # --- layers and models

    def range(self, meta: Meta, children: list[Any]) -> tree.Range:
        words = [_layer(child) for child in children if isinstance(child, Token)]
        part = children[-1] if isinstance(children[-1], tree.Word) else None
        return tree.Range(words[0], words[-1], part, _of(meta))

    def part(self, meta: Meta, children: list[tree.Word]) -> tree.Word:
        return children[0]

    def layers(self, meta: Meta, children: list[tree.Range]) -> tree.Layers:
        return tree.Layers(tuple(children), _of(meta))

    def models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("all", tuple(children), _of(meta))

    def one_models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("one", tuple(children), _of(meta))

    def any_models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("any", tuple(children), _of(meta))

    def origin(self, meta: Meta, children: list[Any]) -> tree.From:
        return tree.From(children[0], children[1] if len(children) > 1 else None, _of(meta))

    def layer_of(self, meta: Meta, children: list[Any]) -> tree.Picked:
        pick = children[1]
        if isinstance(pick, tree.Word):
            pick = tree.Names("all", (pick,), pick.span)
        return tree.Picked(children[0], pick, _of(meta))

    # --- methods

    def argument(self, meta: Meta, children: list[Any]) -> tree.Given:
        return tree.Given(children[0] if len(children) > 1 else None, children[-1], _of(meta))

    last_argument = argument

    def method(self, meta: Meta, children: list[Any]) -> tree.Call:
        return tree.Call(children[0], tuple(children[1:]), _of(meta))

    def one_by(self, meta: Meta, children: list[tree.Call]) -> tree.OneCall:
        return tree.OneCall(tuple(children), _of(meta))

    def share(self, meta: Meta, children: list[Any]) -> list[Any]:
        return children

    def merge(self, meta: Meta, children: list[Any]) -> tree.Merging:
        picked = tuple(child for child in children if isinstance(child, tree.Picked))
        shares = next((tuple(child) for child in children if isinstance(child, list)), ())
        by = children[-1] if isinstance(children[-1], tree.Call | tree.OneCall) else None
        return tree.Merging(picked, shares, by, _of(meta))

    # --- statements

    def version(self, meta: Meta, children: list[Token]) -> tree.Version:
        return tree.Version(number(children[0]))

    def direct(self, meta: Meta, children: list[tree.String]) -> tuple[None, tree.String]:
        return None, children[0]

    def adapter(self, meta: Meta, children: list[Any]) -> tuple[tree.Word, tree.String]:
        return children[0], children[1]

    def revision(self, meta: Meta, children: list[tree.String]) -> tree.String:
        return children[0]

    def model(self, meta: Meta, children: list[Any]) -> tree.Declare:
        on, source = children[1]
        return tree.Declare(children[0], source, on, children[2] if len(children) > 2 else None)

    def dtype(self, meta: Meta, children: list[tree.Word]) -> tree.Dtype:
        return tree.Dtype(children[0])

    def rest(self, meta: Meta, children: list[Any]) -> tree.Rest:
        return tree.Rest(children[0], children[1])

    def take(self, meta: Meta, children: list[Any]) -> tree.Select:
        return tree.Select(children[0], children[1])

    def place(self, meta: Meta, children: list[Any]) -> tree.Place:
        if isinstance(children[1], tree.Merging):
            return tree.Place(children[0], children[1])
        picked = self.layer_of(meta, children[1:])
        return tree.Place(children[0], replace(picked, span=picked.layers.span.to(_of(meta))))

    item_place = place

    def merge_here(self, meta: Meta, children: list[tree.Merging]) -> tree.MergeHere:
        return tree.MergeHere(children[0])

    def item_take(self, meta: Meta, children: list[Any]) -> tree.ItemTake:
        return tree.ItemTake(self.layer_of(meta, children))

    def drop(self, meta: Meta, children: list[tree.Layers]) -> tree.Dropping:
        return tree.Dropping(children[0])

    def drop_any(self, meta: Meta, children: list[Any]) -> tree.DroppingAny:
        return tree.DroppingAny(number(children[0]), children[1])

    def scale(self, meta: Meta, children: list[Any]) -> tree.Scaling:
        return tree.Scaling(children[0], children[1])

    def after(self, meta: Meta, children: list[Token]) -> tree.LayerWord:
        return _layer(children[0])

    def setting(self, meta: Meta, children: list[Any]) -> tuple[tree.Word, tree.Numeral]:
        return tree.Word(str(children[0]), _span(children[0])), children[1]

    def bridge(self, meta: Meta, children: list[Any]) -> tree.Bridging:
        after = children.pop(0) if isinstance(children[0], tree.LayerWord) else None
        return tree.Bridging(after, children[0], tuple(children[1:]))

    def limit(self, meta: Meta, children: list[Token]) -> tree.Limit:
        return tree.Limit(number(children[0]))

    def objective(self, meta: Meta, children: list[Any]) -> tree.Wish:
        return tree.Wish(tree.Word(str(children[0]), _span(children[0])), children[1])

    def fidelity(self, meta: Meta, children: list[Token]) -> tree.Budget:
        return _budget("fidelity", meta, children)

    def trials(self, meta: Meta, children: list[Token]) -> tree.Budget:
        return _budget("trials", meta, children)

    def seed(self, meta: Meta, children: list[Token]) -> tree.Budget:
        return _budget("seed", meta, children)

    def stack(self, meta: Meta, children: list[Any]) -> tree.Block:
        return _whole_block("stack", meta, children)

    def search(self, meta: Meta, children: list[Any]) -> tree.Block:
        return _whole_block("search", meta, children)


_BUILDER = _Builder()


def _budget(name: str, meta: Meta, children: list[Token]) -> tree.Budget:
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return tree.Budget(tree.Word(name, span), tuple(number(child) for child in children))


def _whole_block(name: str, meta: Meta, children: list[Any]) -> tree.Block:
    """A block that was parsed with its file at once: without comments."""
    marked = [child if isinstance(child, _Marked) else _Marked(child) for child in children]
    statements = tuple(tree.Statement(m.body, _of(meta), m.tied, m.maybe) for m in marked)
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return tree.Block(tree.Word(name, span), statements, ())
