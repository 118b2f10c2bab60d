"""Text in, plan out: each statement by the grammar, the tree lowered, the plan checked alone.

After a fault the parser goes on at the next statement, so that no fault hides another.
"""

import codecs
import functools
import hashlib
import json
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from errno import ENAMETOOLONG, ENOENT
from itertools import chain, islice
from pathlib import Path
from typing import Any, final

import lark
import pydantic
from lark import Lark, TextSlice, Token
from lark.lexer import LexerState, LexerThread, LineCounter

from gptailor.checks.plan import check_alone
from gptailor.lang import syntax_errors, tree
from gptailor.lang.draft import Draft, Placed
from gptailor.lang.lower import lower, lower_statement
from gptailor.lang.split import Piece, Pieces, split
from gptailor.plan.bounds import MOST_BYTES, MOST_FAULTS, MOST_STATEMENTS
from gptailor.plan.faults import (
    TOO_LARGE,
    Fault,
    MissingPlanError,
    Origin,
    PlanError,
    PlanFolderError,
    Source,
    Span,
    errors,
    listed,
    locate,
)
from gptailor.plan.plan import Model, Objective, Plan, data_faults
from gptailor.plan.registry import OBJECTIVES

# --------------------------------------------------------------------------------------- the parser


@final
class _Parentheses:
    """Makes newlines inside parentheses blank."""

    always_accept = ("_NL",)

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        """Yield the tokens without these newlines."""
        depth = 0
        for token in stream:
            depth += {"LPAR": 1, "RPAR": -1}.get(token.type, 0)
            if token.type != "_NL" or depth <= 0:
                yield token


@final
class _Thread(LexerThread):
    """A lexer's thread that starts at a statement without counting the lines before it."""

    @classmethod
    def from_text(cls, lexer: Any, text_or_slice: Any) -> "_Thread":
        """Return a thread for a piece of a text; spans are offsets."""
        text = TextSlice.cast_from(text_or_slice)
        counter = LineCounter("\n")  # type: ignore[no-untyped-call]
        counter.char_pos = text.start
        return cls(lexer, LexerState(text, counter))


def grammar() -> str:
    """Return the text of the grammar that the package holds."""
    return (pkgutil.get_data(__package__, "tailor.lark") or b"").decode("utf-8")


_HOOKS: dict[str, Any] = {"postlex": _Parentheses(), "_plugins": {"LexerThread": _Thread}}


def parser_from_grammar(*starts: str) -> Lark:
    """Return a parser that starts at these rules, with a new table."""
    return Lark(grammar(), start=list(starts), parser="lalr", propagate_positions=True, **_HOOKS)


STARTS = ("statement", "item", "wish", "objective")


@functools.cache
def parser() -> Lark:
    """Return the parser; it starts at `statement`, `item`, `wish` or `objective`.

    Its table is read from `tailor.json` if this grammar and this version of lark made it; making a
    new one takes ten times as long.
    """
    saved = saved_table()
    if saved.get("made_of") != table_key():
        return parser_from_grammar(*STARTS)
    loaded: Lark = Lark._load_from_dict(saved["data"], saved["memo"], **_HOOKS)  # type: ignore[no-untyped-call]
    return loaded


@functools.cache
def spelled() -> Mapping[str, str]:
    """Return the word or the sign of each terminal of the grammar that stands for one text."""
    return {t.name: t.pattern.value for t in parser().terminals if t.pattern.type == "str"}


def table_key() -> list[str]:
    """Return all that a table depends on."""
    return [lark.__version__, hashlib.sha256(grammar().encode()).hexdigest(), *STARTS]


def saved_table() -> dict[str, Any]:
    """Return the table that the package holds; an empty one if it can't be read."""
    try:
        table: dict[str, Any] = json.loads(pkgutil.get_data(__package__, "tailor.json") or b"")
        lalr = table["data"]["parser"]["parser"]
        lalr["tokens"] = _by_number(lalr["tokens"])
        rows = _by_number(lalr["states"])
        lalr["states"] = {state: _by_number(row) for state, row in rows.items()}
        return table | {"memo": _by_number(table["memo"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _by_number(named: dict[str, Any]) -> dict[int, Any]:
    """Return a dictionary of lark's under its numbers, which JSON has as texts."""
    return dict(zip(map(int, named), named.values(), strict=True))


# --------------------------------------------------------------------------------- piece by piece


def parse(source: Source) -> tuple[tree.File, list[Fault]]:
    """Return the tree of a text, and its syntax faults.

    A statement with a fault is not in the tree.
    """
    pieces, faults = split(source)
    inside = chain.from_iterable(piece.block.items if piece.block else () for piece in pieces.items)
    beyond = next(islice(chain(pieces.items, inside), MOST_STATEMENTS, None), None)
    if beyond is not None:
        message = f"expected at most {MOST_STATEMENTS:,} statements, the text has more"
        fault = Fault(
            TOO_LARGE,
            message,
            span=Span(beyond.start, beyond.end),
            help="a statement can have a range of layers, as in L0..L99",
        )
        return tree.File(Span(0, 0), (), ()), locate([fault], Origin(source, Path()))
    statements = tuple(_statements(source, pieces, "statement", faults))
    if faults and (mergekit := syntax_errors.mergekit_fault(source, read=bool(statements))):
        statements, faults = (), [mergekit]
    file = tree.File(Span(0, len(source.text)), statements, tuple(pieces.closing))
    return file, locate(faults, Origin(source, Path()))


def _statements(
    source: Source, pieces: Pieces, start: str, faults: list[Fault]
) -> Iterator[tree.Statement]:
    for piece in pieces.items:
        if len(faults) > MOST_FAULTS:
            return
        statement = None
        if piece.block is not None and not piece.broken:
            statement = _block(source, piece, piece.block, faults)
        elif not piece.broken:
            span = Span(piece.start, piece.end)
            try:
                parsed = parser().parse(TextSlice(source.text, piece.start, piece.end), start=start)
            except lark.UnexpectedInput as error:
                faults.append(syntax_errors.fault(source, error, span, start, parser()))
            else:
                statement = tree.statement_of(parsed, span)
        if statement is not None:
            statement.above, statement.behind = tuple(piece.above), piece.behind
            yield statement


def _block(
    source: Source, piece: Piece, inside: Pieces, faults: list[Fault]
) -> tree.Statement | None:
    head = source.text[piece.start : piece.brace].strip()
    rule = {"stack": "item", "search": "wish"}.get(head)
    if rule is None:
        message = f"'{head}' can't have a block" if head else "a block without a name"
        where = Span(piece.start, piece.brace) if head else Span(piece.brace, piece.brace + 1)
        faults.append(Fault("S105", message, span=where,
                            help="only 'stack' and 'search' have a block in { }"))  # fmt: skip
        return None
    if inside.closed and (following := source.text[inside.end : piece.end]):
        where = Span(piece.end - len(following.lstrip()), piece.end)
        help_ = "start the next statement on a new line or after ';'"
        faults.append(
            Fault(
                "S105", "expected the end of the statement after its block", span=where, help=help_
            )
        )
    inner_faults: list[Fault] = []
    statements = tuple(_statements(source, inside, rule, inner_faults))
    faults += inner_faults if inside.closed else []
    name = tree.Word(Span(piece.start, piece.start + len(head)), head)
    span = Span(piece.start, inside.end)
    return tree.Statement(span, "block", (name, statements, tuple(inside.closing)))


# -------------------------------------------------------------------------------------------- plans


def read_text(source: Source, folder: Path) -> tuple[Plan, list[Fault]]:
    """Return the plan of a text and all faults that it has by itself.

    Paths are relative to `folder`.
    """
    file, syntax = parse(source)
    plan, faults = lower(file, source, folder)
    if too_large := [fault for fault in (*syntax, *faults) if fault.code == TOO_LARGE]:
        return plan, too_large
    if plan.origin is not None and not syntax:
        plan = plan.read_from(replace(plan.origin, tree=file))
    if not syntax and not any(s.rule == "version" for s in file.statements):
        fault = Fault("P101", "the language version is missing", span=Span(0, 0),
                      help="write 'tailor 1' as the first statement")  # fmt: skip
        faults.append(fault)
    unread = (_unread(source, split(source)[0], file.statements) or [""]) if syntax else []
    all_faults = syntax + faults + check_alone(plan, unread=frozenset(unread))
    located = locate(all_faults, plan.origin)
    return plan, [f if f.span else replace(f, span=Span(0, 0)) for f in located]


def _unread(source: Source, pieces: Pieces, statements: Sequence[tree.Statement]) -> list[str]:
    """Return the first words of statements that were not read; empty for an unknown statement."""
    read = {statement.span.start: statement for statement in statements}
    words = []
    for piece in pieces.items:
        statement = read.get(piece.start)
        if statement is not None and piece.block is not None:
            name, inner, _ = statement.parts
            words += [name.text] if _unread(source, piece.block, inner) else []
        elif statement is None:
            first = syntax_errors.start_of(source.text, piece.start, parser())
            words.append("" if piece.broken else first)
    return words


def read_json(source: Source, folder: Path) -> tuple[Plan | None, list[Fault]]:
    """Return the plan of a JSON document, and all faults that it has by itself."""
    if source.name.endswith(".lock"):
        help_ = f"name the plan: {source.name.removesuffix('.lock')}"
        return None, [
            Fault("S107", "expected a plan, got a plan's lock", help=help_, source=source)
        ]
    try:
        plan = Plan.model_validate_json(source.text)
    except pydantic.ValidationError as error:
        return None, locate(data_faults(error, source), None)
    except PlanError as error:
        return None, locate((replace(fault, source=source) for fault in error.faults), None)
    plan = plan.read_from(Origin(source, folder))
    return plan, locate(check_alone(plan), plan.origin)


Numbers = Mapping[str, object]
"""Values for a plan's `let`s by their names: numbers, or texts such as `0.0..1.0`."""


def _with_numbers(source: Source, numbers: Numbers) -> tuple[Source, list[Fault]]:
    """Return the text with other values in its `let` statements, and faults."""
    file, _ = parse(source)
    lets = [s.parts for s in file.statements if s.rule == "let"]
    spans = {name.text: value.span for name, value in lets}
    faults = []
    for name, value in numbers.items():
        if name not in spans:
            named = listed(f"'{each}'" for each in spans)
            help_ = (
                f"the defined numbers are {named}" if spans else "add a line such as let mix = 0.5"
            )
            faults.append(
                Fault("P114", f"the number '{name}' is not defined", source=source, help=help_)
            )
        else:
            faults += _value_faults(name, value)
    if faults:
        return source, faults
    text = source.text
    for name in sorted(numbers, key=lambda name: spans[name].start, reverse=True):
        span = spans[name]
        text = text[: span.start] + str(numbers[name]) + text[span.end :]
    settings = ", ".join(f"{name}={value}" for name, value in numbers.items())
    return Source(source.name, text, settings), []


def _value_faults(name: str, value: object) -> list[Fault]:
    """Return the faults of a value by itself, as if it stood in a `let` statement."""
    source = Source(f"the value of '{name}'", f"let {name} = {value}")
    file, faults = parse(source)
    alone = [statement.rule for statement in file.statements] == ["let"]
    if isinstance(value, str) if faults else alone:
        return faults
    message = f"expected a number, an interval or 'one of (…)' for '{name}', got '{value}'"
    return [Fault("P303", message, source=source)]


def read_bytes(
    raw: bytes, name: str, folder: Path, numbers: Numbers | None = None
) -> tuple[Plan | None, list[Fault]]:
    """Return the plan of a file's bytes: Tailor, or JSON if it starts with a brace.

    The bytes are UTF-8, with or without a byte-order mark, and at most `MOST_BYTES`. `numbers`
    replace values of `let` statements.
    """
    if len(raw) > MOST_BYTES:
        message = f"expected a plan of at most {MOST_BYTES:,} bytes, the file has more"
        help_ = "name the plan, not a file of weights"
        return None, [Fault(TOO_LARGE, message, source=Source(name, ""), help=help_)]
    try:
        source = Source(name, raw.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"not UTF-8: invalid byte at offset {error.start}, in line {line}"
        return None, [Fault("S106", message, source=Source(name, ""), help="save it as UTF-8")]
    if source.text.lstrip()[:1] == "{":
        if numbers:
            message = "a plan in JSON can't take values from --let"
            return None, [
                Fault("P114", message, source=source, help="change 'numbers' in the file")
            ]
        return read_json(source, folder)
    if numbers:
        source, faults = _with_numbers(source, numbers)
        if faults:
            return None, faults
    return read_text(source, folder)


def load(path: str | Path, *, let: Numbers | None = None) -> Plan:
    """Return the plan of a file, in Tailor or in JSON; its models are not read, see `check`.

    Relative folders and texts that the plan names start at the file's folder. `let` has values for
    the plan's `let`s, in place of the text's: `let={"mix": 0.7}`.

    Raises PlanError, with all faults, if the plan has any by itself, MissingPlanError (a
    FileNotFoundError) for a missing file, and OSError as `open` does.
    """
    path = Path(path)
    return _sound(file_bytes(path), str(path), path.parent, let)


def plan_or_file(plan: Plan | str | Path) -> Plan:
    """Return a plan, or the plan of a file as `load` does.

    Raises the errors of `load`.
    """
    return plan if isinstance(plan, Plan) else load(plan)


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a plan's file, at most one byte beyond a plan's limit.

    Raises MissingPlanError for a missing file, PlanFolderError for a folder, and OSError as `open`
    does.
    """
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise PlanFolderError(path) from None
    except OSError as error:
        if error.errno not in {ENOENT, ENAMETOOLONG}:  # a text in place of a path may be long
            raise
        raise MissingPlanError(path) from None


def loads(
    text: str, name: str = "<text>", folder: str | Path = ".", *, let: Numbers | None = None
) -> Plan:
    """Return the plan of a text, in Tailor or in JSON; its models are not read, see `check`.

    Faults call the text `name`; relative folders and texts that the plan names start at `folder`.
    `let` is as in `load`.

    Raises PlanError, with all faults, if the plan has any by itself.
    """
    if text.endswith((".tailor", ".json")) and not {"\n", "#"}.intersection(text):
        raise PlanError(
            [Fault("S102", "expected a plan's text, got a file's name", help="use gptailor.load")]
        )
    # Half of a surrogate pair has no UTF-8; its bytes are then refused like a file's.
    return _sound(text.encode("utf-8", "surrogatepass"), name, Path(folder), let)


def _sound(raw: bytes, name: str, folder: Path, let: Numbers | None) -> Plan:
    plan, faults = read_bytes(raw, name, folder, let)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


def read_objective(
    text: str, models: Iterable[str] = ("base",), *, name: str = "<objective>"
) -> tuple[Objective, bool]:
    """Return the objective of a text, and whether the text has its direction.

    Without one it has the direction that is better; where only a metric knows that, it is
    `maximize`. `models` are the names that `from` may have; messages call the text `name`.
    Raises PlanError with faults that have their places in the text.
    """
    source = Source(name, text)
    pieces, faults = split(source)
    if not faults and len(pieces.items) != 1:
        names = listed(OBJECTIVES.names(), "or")
        faults.append(Fault("P601", "expected one objective", span=Span(0, max(1, len(text))),
                            help=f'write one of {names}, as in nll("text.txt")'))  # fmt: skip
    statements = [] if faults else list(_statements(source, pieces, "objective", faults))
    if not statements:
        raise PlanError(locate(faults, Origin(source, Path())))
    draft = Draft(single={("search",): Placed(True, {})})
    for model in ("base", *models):
        draft.single["models", model] = Placed(Model(source="."), {})
    lower_statement(draft, statements[0])
    plan = draft.plan(source, Path())
    stopping = errors(locate(draft.faults + check_alone(plan), plan.origin))
    if of_the_text := [fault for fault in stopping if fault.span]:
        raise PlanError(of_the_text)
    assert plan.search is not None
    direction, _ = statements[0].parts
    return plan.search.objectives[0], direction is not None
