"""A text into its tree, each statement by the grammar; after a fault it goes on at the next one."""

import codecs
import functools
import importlib.resources
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lark
import pydantic
from lark import Lark, TextSlice, Token
from lark.lexer import LexerState, LexerThread, LineCounter

from gptailor.checks.plan import check_alone
from gptailor.lang import syntax_errors as expected
from gptailor.lang import tree
from gptailor.lang.lower import has_version, lower
from gptailor.lang.split import Piece, Pieces, split
from gptailor.lang.tree import Marked, built
from gptailor.plan.faults import Fault, Origin, PlanError, Source, Span, errors, listed, locate
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import OBJECTIVES


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


def read_text(source: Source, folder: Path) -> tuple[Plan, list[Fault]]:
    """The plan of a text and all faults that it has by itself. Paths are relative to `folder`."""
    file, syntax = parse(source)
    plan, faults = lower(file, source, folder)
    if not has_version(file) and not syntax:
        fault = Fault("P101", "the file doesn't say its language version", span=Span(0, 0),
                      help="write 'tailor 1' as its first statement")  # fmt: skip
        faults.append(fault)
    found = syntax + faults + check_alone(plan, whole=not syntax)
    located = locate(found, plan.origin)
    return plan, [f if f.span else replace(f, span=Span(0, 0)) for f in located]


def read_json(source: Source, folder: Path) -> tuple[Plan | None, list[Fault]]:
    """The plan of a JSON document, and all faults that it has by itself."""
    try:
        plan = Plan.model_validate_json(source.text)
    except pydantic.ValidationError as error:
        faults = [
            Fault("S107", f"{e['msg'][:1].lower()}{e['msg'][1:]}", tuple(e["loc"]), source=source)
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        return None, faults
    plan = plan.read_from(Origin(source, folder))
    return plan, locate(check_alone(plan), plan.origin)


def read_bytes(raw: bytes, name: str, folder: Path) -> tuple[Plan | None, list[Fault]]:
    """The plan of a file's bytes: Tailor, or JSON if it starts with a brace."""
    try:
        source = decode_source(raw, name)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"byte {error.start} (line {line}) is not UTF-8"
        return None, [Fault("S106", message, source=Source(name, ""), help="save it as UTF-8")]
    if source.text.lstrip()[:1] == "{":
        return read_json(source, folder)
    return read_text(source, folder)


def load(path: str | Path) -> Plan:
    """The plan of a file. Raises PlanError, with all its faults, if it has any; OSError as open."""
    path = Path(path)
    plan, faults = read_bytes(path.read_bytes(), str(path), path.parent)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


def loads(text: str, name: str = "<text>", folder: str | Path = ".") -> Plan:
    """The plan of a text; raises PlanError, with all its faults, if it has any."""
    # Half of a surrogate pair has no UTF-8; its bytes are then refused like a file's.
    plan, faults = read_bytes(text.encode("utf-8", "surrogatepass"), name, Path(folder))
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


DIRECTIONS = ("minimize", "maximize")


def read_objective(
    text: str, models: Iterable[str] = ("base",), *, name: str = "<objective>"
) -> tuple[Objective, bool]:
    """The objective of a text, and whether the text says its direction.

    Without one it has the direction that is better; where only a metric knows that, it is
    `maximize`. `models` are the names that `kl` may compare with, `name` what messages call the
    text. Raises PlanError with faults that have their places in the text.
    """
    word = re.match(r"\s*(\w*)", text)
    first = word[1] if word else ""
    spec = OBJECTIVES.get(first)
    direction = "" if first in DIRECTIONS else f"{(spec and spec.direction) or 'maximize'} "
    declared = "".join(f'model {model} = "."\n' for model in dict.fromkeys(("base", *models)))
    before = f"tailor 1\n{declared}search {{\n{direction}"
    source = Source(name, f"{before}{text}\n}}")
    shown = Source(name, text)
    if not _stands_alone(source):
        faults = list(_inside(errors(read_text(source, Path())[1]), shown, len(before)))
        raise PlanError(faults or [_none(shown)])
    plan, faults = read_text(source, Path())
    if found := list(_inside(errors(faults), shown, len(before))):
        raise PlanError(found)
    assert plan.search is not None
    return plan.search.objectives[0], not direction


def _stands_alone(source: Source) -> bool:
    """Whether the text is one objective, which neither ends the block nor goes on after it."""
    file, faults = parse(source)
    body = file.statements[-1].body if file.statements else None
    return (
        not faults
        and isinstance(body, tree.Block)
        and body.name.text == "search"
        and len(body.statements) == 1
        and isinstance(body.statements[0].body, tree.ObjectiveNode)
    )


def _none(shown: Source) -> Fault:
    known = listed(OBJECTIVES, "or")
    return Fault(
        "P601",
        "that is not one objective",
        span=Span(0, max(1, len(shown.text))),
        source=shown,
        help=f"write one of {known}, as in nll(\"text.txt\")",
    )  # fmt: skip


def _inside(faults: Iterable[Fault], shown: Source, start: int) -> Iterator[Fault]:
    """The faults as the text alone has them; those of what stands around it are none."""
    end = len(shown.text)
    for fault in faults:
        span = fault.span
        if span is None or span.end <= start or span.start > start + end:
            continue
        begin = min(max(0, span.start - start), max(0, end - 1))
        moved = Span(begin, max(begin + 1, min(span.end - start, end)))
        yield replace(fault, span=moved, source=shown, also=())
