"""A text in an editor: its lines as the editor counts them, its words, and its models.

Models are read in place: a model at a URL, or outside the Hub's cache, isn't fetched for an editor.
"""

import bisect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from lsprotocol import types
from pygls.uris import to_fs_path

from gptailor.checkpoint.files import CheckpointError, expanded, open_regular
from gptailor.checkpoint.models import Opened, Opener, folder_of, is_plan, is_remote
from gptailor.lang import tree
from gptailor.lang.lower import parts_of
from gptailor.lang.parse import read_bytes
from gptailor.plan.bounds import MOST_BYTES
from gptailor.plan.faults import Fault, Span, errors
from gptailor.plan.plan import Model, Plan, is_at_url
from gptailor.plugins.lsp.names import NameKind, Occurrence
from gptailor.plugins.lsp.plan_text import PlanText
from gptailor.prepare import open_plan

_UNITS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}
"""The encodings that columns count, with the bytes of a unit."""


@final
class TextLines:
    """A text's offsets in characters, and its positions in the protocol.

    A line ends at a line feed, a carriage return, or both. `encoding` is the unit of columns.
    """

    def __init__(self, text: str, encoding: str = "utf-16") -> None:
        self.text = text
        self._codec, self._unit = _UNITS[encoding]
        self._starts = [0, *(end.end() for end in re.finditer(r"\r\n|\r|\n", text))]

    def position(self, offset: int) -> types.Position:
        """Return the position of an offset."""
        line = bisect.bisect_right(self._starts, offset) - 1
        return types.Position(line, self._width(self.text[self._starts[line] : offset]))

    def offset(self, position: types.Position) -> int:
        """Return a position's offset; it never lies beyond its line or within a character."""
        if position.line >= len(self._starts):
            return len(self.text)
        start, end = self.line_span(position.line)
        columns = position.character
        for at in range(start, end):
            columns -= self._width(self.text[at])
            if columns < 0:
                return at
        return end

    def line_span(self, line: int) -> tuple[int, int]:
        """Return the offsets of a line's start and end, without the characters that end it."""
        start = self._starts[line]
        end = self._starts[line + 1] if line + 1 < len(self._starts) else len(self.text)
        return start, start + len(self.text[start:end].rstrip("\r\n"))

    def range(self, span: Span) -> types.Range:
        """Return the range of a span."""
        return types.Range(self.position(span.start), self.position(span.end))

    def _width(self, text: str) -> int:
        if text.isascii():
            return len(text)
        return len(text.encode(self._codec, "surrogatepass")) // self._unit


@final
class EditedText(PlanText):
    """One version of a text in an editor, with lines counted as the editor does."""

    def __init__(self, uri: str, text: str, encoding: str = "utf-16") -> None:
        self.uri = uri
        self.encoding = encoding
        self.lines = TextLines(text, encoding)
        super().__init__(Path(to_fs_path(uri) or uri), text)

    def named(self, path: str) -> Path:
        """Return the path of a file or a folder that the text names."""
        return self.folder / expanded(path)

    @property
    def sound(self) -> Plan | None:
        """The plan, or None if it has errors by itself."""
        return None if errors(self.faults) else self.plan

    def word_at(self, offset: int) -> Occurrence | None:
        """Return the word at an offset, or the word that ends there."""
        words = [word for word in self.words if word.span.start <= offset <= word.span.end]
        return next((word for word in words if word.span.end > offset), words[0] if words else None)

    def uses(self, name: Occurrence) -> list[Occurrence]:
        """Return all words that stand for the same model or number."""
        return [word for word in self.words if (word.kind, word.text) == (name.kind, name.text)]

    def declaration(self, name: Occurrence) -> Occurrence | None:
        """Return the word that gives a model or a number its name."""
        return next((use for use in self.uses(name) if use.declares), None)

    def keyword_at(self, offset: int) -> Occurrence | None:
        """Return the word at an offset outside quotes and comments, as a keyword."""
        start, end = self.lines.line_span(self.lines.position(offset).line)
        for match in re.finditer(r'"[^"\r\n]*"?|#.*|\w+', self.text[start:end]):
            span = Span(start + match.start(), start + match.end())
            if span.start <= offset <= span.end and match[0][0] not in '"#':
                return Occurrence("keyword", match[0], span)
        return None


# ------------------------------------------------------------------------------------- its models


@final
@dataclass(frozen=True)
class SeenModels:
    """A plan's models as their headers describe them, and the plan's faults against them.

    `whole` is whether the plan was checked against all its models, without errors.
    """

    declared: Mapping[str, Model]
    opened: Mapping[str, Opened]
    faults: tuple[Fault, ...] = ()
    whole: bool = False

    def model(self, plan: Plan | None, name: str) -> Opened | None:
        """Return a model of a plan, if it was opened as the plan declares it."""
        if plan is None or plan.models.get(name) != self.declared.get(name):
            return None
        return self.opened.get(name)

    def layers(self, plan: Plan | None) -> int | None:
        """Return the base's number of layers, if it is known."""
        base = self.model(plan, "base")
        return base.layout.count if base is not None else None


NOT_CACHED = "C503"
"""The code for a model outside the Hub's cache, which is not the plan's fault."""

NOT_SEEN = SeenModels({}, {})
"""The models before they are looked at."""


def seen_models(text: EditedText, *, hub: bool = False) -> SeenModels:
    """Look at a text's models; `hub` is whether the Hub is asked.

    If the plan has faults, or a model at a URL, only complete folders are looked at.
    """
    plan = text.plan
    if plan is None or not plan.models:
        return NOT_SEEN
    if text.sound is None or _names_url(plan):
        return SeenModels(plan.models, _folders(plan))
    opened = open_plan(plan, None)
    more = [fault for fault in opened.faults if fault not in text.faults]
    shown = tuple(more if hub else map(_excused, more))
    return SeenModels(plan.models, opened.models, shown, whole=not errors(opened.faults))


def _names_url(plan: Plan) -> bool:
    """Return whether a model is at a URL, in a plan or in plans that are its models."""
    waiting, checked = [plan], set[tuple[str, str]]()
    while waiting:
        plan = waiting.pop()
        for model in plan.models.values():
            if is_at_url(model.source):
                return True
            if not is_plan(model):
                continue
            path = folder_of(plan, model.source)
            key = os.path.realpath(path), os.path.realpath(path.parent)  # a link has its own folder
            if key not in checked:
                checked.add(key)
                waiting += _plans_in(path)
    return False


def _plans_in(path: Path) -> list[Plan]:
    """Return the plan in a file; [] if it can't be read or has faults."""
    try:
        with open_regular(path) as file:
            plan, faults = read_bytes(file.read(MOST_BYTES + 1), str(path), path.parent)
    except (OSError, CheckpointError):
        return []
    return [] if plan is None or errors(faults) else [plan]


def _excused(fault: Fault) -> Fault:
    """Return a warning for a model outside the Hub's cache if the Hub isn't asked.

    The model may belong to a plan that is a model; its name is at the end of the message.
    """
    match = re.fullmatch(r"is not in the local cache.*\(([^()]+)\)", fault.message)
    if fault.code != NOT_CACHED or match is None:
        return fault
    why = "is missing from the Hub's cache, so the plan isn't checked against its models"
    help_ = (
        fault.help if "of that name" in fault.help else "run 'gptailor check', which asks the Hub"
    )
    return replace(fault, message=f"'{match[1]}' {why}", help=help_, severity="warning")


def _folders(plan: Plan) -> dict[str, Opened]:
    opener = Opener(plan, plan.models)
    folders: dict[str, Opened] = {}
    for name, model in plan.models.items():
        derived = model.made is not None or model.on is not None or is_plan(model)
        elsewhere = is_remote(model) or is_at_url(model.source)
        if not derived and not elsewhere and (opened := opener.model(name)) is not None:
            folders[name] = opened
    return folders


def layers_named(text: EditedText) -> int:
    """Return one more than the largest position that a text names."""
    numbers = (word.number for word in text.words if word.kind == "layer" and not word.models)
    return max(numbers, default=-1) + 1


# ---------------------------------------------------------------------------------------- outlines


def symbols(text: EditedText) -> list[types.DocumentSymbol]:
    """Return a text's declarations and statements, blocks with their contents."""
    return [_symbol(text, statement) for statement in text.tree.statements]


_NAMED = {
    "declare": types.SymbolKind.Variable,
    "let": types.SymbolKind.Constant,
    "block": types.SymbolKind.Namespace,
}
"""The kinds of statements that have a name, by their rule."""


def _symbol(text: EditedText, statement: tree.Statement) -> types.DocumentSymbol:
    rule, span = statement.rule, statement.span
    kind, name, at = types.SymbolKind.Field, text.text[span.start : span.end], span
    children: list[types.DocumentSymbol] = []
    if rule in _NAMED:
        parts = parts_of(statement)
        kind, name, at = _NAMED[rule], parts["name"].text, parts["name"].span
        children = [_symbol(text, inner) for inner in parts.get("statements", ())]
    where = text.lines.range
    return types.DocumentSymbol(
        " ".join(name.split())[:80], kind, where(span), where(at), children=children or None
    )


def folds(text: EditedText) -> list[types.FoldingRange]:
    """Return the lines that can be folded: of statements, and of comments."""
    spans = [(statement.span, None) for statement in text.tree.statements]
    stretches = [*spans, *((span, types.FoldingRangeKind.Comment) for span in _comment_runs(text))]
    ends = [(text.lines.range(span), kind) for span, kind in stretches]
    return [
        types.FoldingRange(where.start.line, where.end.line, kind=kind)
        for where, kind in ends
        if where.end.line > where.start.line
    ]


def _comment_runs(text: EditedText) -> Iterator[Span]:
    """Yield neighbouring lines that are comments."""
    start, end = -1, -1
    for number in range(text.text.count("\n") + 1):
        first, last = text.lines.line_span(number)
        if text.text[first:last].lstrip().startswith("#"):
            start, end = (first if start < 0 else start), last
        elif start >= 0:
            yield Span(start, end)
            start = -1
    if start >= 0:
        yield Span(start, end)


_TOKENS: dict[NameKind, str] = {
    "model": "type", "number": "variable", "method": "function", "objective": "function",
    "function": "function", "parameter": "parameter", "setting": "enumMember", "part": "property",
    "dtype": "enumMember", "file type": "enumMember",
}  # fmt: skip
LEGEND = types.SemanticTokensLegend(sorted(set(_TOKENS.values())), ["declaration"])


def semantic_tokens(text: EditedText) -> types.SemanticTokens:
    """Return the kinds of names, for a client to colour."""
    data: list[int] = []
    line = column = 0
    for word in text.words:
        kind = _TOKENS.get(word.kind)
        where = text.lines.range(word.span)
        if kind is None or where.start.line != where.end.line:
            continue
        ahead = where.start.line - line
        start = where.start.character - (0 if ahead else column)
        size = where.end.character - where.start.character
        data += [ahead, start, size, LEGEND.token_types.index(kind), int(word.declares)]
        line, column = where.start.line, where.start.character
    return types.SemanticTokens(data)
