"""Completions at a place: the grammar's parser gives the words, its tree the names."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import lark
from lark import Token
from lsprotocol import types

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES
from gptailor.lang import tree
from gptailor.lang.parse import parser, spelled
from gptailor.lang.tree import statement_of
from gptailor.plan.faults import Span
from gptailor.plan.layer_parts import BRANCHES, NORMS, ROLES
from gptailor.plan.registry import (
    CHAT_TEMPLATES,
    DTYPES,
    METHODS,
    OBJECTIVES,
    Argument,
    Method,
    Parameter,
)
from gptailor.plugins.lsp.hover import KEYWORDS, bounds_words
from gptailor.plugins.lsp.names import Occurrence, argument_for, occurrences
from gptailor.plugins.lsp.text import EditedText, SeenModels, layers_named

_PROBE = "__here__"
_SAMPLES = {
    "LAYER": "L0", "NAME": "x", "NUMBER": "1", "STRING": '"x"', "SIZE": "1M", "COMPARISON": "<=",
}  # fmt: skip
"""A text for each terminal that isn't one fixed word."""
_MOST_STEPS = 400
"""The most parser states in a search for the end of a statement."""
_MOST_FILES = 500

_Kinds = types.CompletionItemKind


@final
@dataclass(frozen=True, slots=True)
class _Cursor:
    """The place of a completion: text, offset, typed part of the word, abilities of the client."""

    text: EditedText
    offset: int
    seen: SeenModels
    snippets: bool
    begun: str = ""

    def item(
        self,
        label: str,
        kind: types.CompletionItemKind,
        detail: str = "",
        *,
        rank: int = 1,
        snippet: str = "",
    ) -> types.CompletionItem:
        """Return an item that replaces the typed part of the word."""
        span = Span(self.offset - len(self.begun), self.offset)
        formed = bool(snippet) and self.snippets
        plain = label if formed or not snippet else re.sub(r"\$\d", "", snippet)
        form = types.InsertTextFormat
        return types.CompletionItem(
            label,
            kind=kind,
            detail=detail or None,
            sort_text=f"{rank}{label}",
            insert_text_format=form.Snippet if formed else form.PlainText,
            text_edit=types.TextEdit(self.text.lines.range(span), snippet if formed else plain),
        )


def completions(
    text: EditedText, offset: int, seen: SeenModels, *, snippets: bool = False
) -> list[types.CompletionItem]:
    """Return the completions at an offset, as far as the text before it goes."""
    start, _ = text.lines.line_span(text.lines.position(offset).line)
    line = re.sub(r'"[^"]*"', lambda quoted: " " * len(quoted[0]), text.text[start:offset])
    if "#" in line.partition('"')[0] or text.is_json:
        return []
    piece, rule = text.piece_at(offset)
    begin = offset if piece is None else piece.start
    if '"' in line:
        quote = start + line.index('"')
        cursor = _Cursor(text, offset, seen, snippets)
        return list(_in_quotes(cursor, text.text[begin:quote], rule, text.text[quote + 1 : offset]))
    begun = re.search(r"([^\W\d]\w*)?$", text.text[begin:offset])
    cursor = _Cursor(text, offset, seen, snippets, begun[0] if begun else "")
    return list(_items(cursor, text.text[begin : offset - len(cursor.begun)], rule))


# ------------------------------------------------------------------------------- accepted words


def _parsed(before: str, rule: str) -> Any:
    """Return the parser after a piece of text, or None if the piece can't be parsed."""
    running = parser().parse_interactive(before, start=rule)
    try:
        for _ in running.iter_parse():
            pass
    except lark.UnexpectedInput:
        return None
    return running


def _probed(running: Any, terminal: str, text: str) -> Occurrence | None:
    """Return a token's occurrence in the shortest statement that it could continue."""
    try:
        running = running.copy()
        running.feed_token(_token(terminal, text))
    except lark.UnexpectedInput:
        return None
    waiting, states = deque([running]), set()
    for _ in range(_MOST_STEPS):
        if not waiting:
            break
        running = waiting.popleft()
        accepted = running.accepts()
        if "$END" in accepted:
            statement = statement_of(running.feed_eof(), Span(0, 0))
            words = occurrences(tree.File(Span(0, 0), (statement,), ()))
            return next((word for word in words if _PROBE in word.text), None)
        for name in sorted(accepted, key=lambda name: (name in _SAMPLES, name)):
            after = running.copy()
            after.feed_token(_token(name, _SAMPLES.get(name) or spelled().get(name, "")))
            state = tuple(after.parser_state.state_stack)
            if state not in states:
                states.add(state)
                waiting.append(after)
    return None


def _token(terminal: str, text: str) -> Token:
    return Token(terminal, text, start_pos=0, end_pos=0)


# ----------------------------------------------------------------------------------- words, names


def _items(cursor: _Cursor, before: str, rule: str) -> Iterator[types.CompletionItem]:
    running = _parsed(before, rule)
    if running is None:
        return
    accepted: set[str] = running.accepts()
    if "NAME" in accepted and (word := _probed(running, "NAME", _PROBE)) is not None:
        after_name = running.copy()
        after_name.feed_token(_token("NAME", _PROBE))
        if word.call is not None and word.kind not in ("method", "objective"):
            yield from _arguments(cursor, word, unnamed="EQUAL" in after_name.accepts())
        else:
            yield from _names(cursor, word)
    if "LAYER" in accepted:
        yield from _layers(cursor)
    for keyword in sorted(spelled().get(name, "") for name in accepted):
        if keyword[:1].isalpha():
            block = f"{keyword} {{\n\t$0\n}}" if keyword in ("stack", "search") else ""
            yield cursor.item(
                keyword,
                _Kinds.Keyword,
                KEYWORDS.get(keyword, ""),
                rank=3,
                snippet=cursor.snippets * block,
            )


def _names(cursor: _Cursor, word: Occurrence) -> Iterator[types.CompletionItem]:
    """Yield the completions of a word by its kind."""
    offered: dict[str, Callable[[_Cursor], Iterable[types.CompletionItem]]] = {
        "model": _models,
        "number": _numbers,
        "function": _numbers,
        "method": _methods,
        "objective": _objectives,
        "dtype": lambda cursor: (cursor.item(name, _Kinds.EnumMember) for name in DTYPES),
        "file type": _file_types,
    }
    if word.kind == "part":
        yield from _parts(cursor, word.text)
    elif not word.declares and word.kind in offered:
        yield from offered[word.kind](cursor)


def _models(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    plan = cursor.text.plan
    for name, model in plan.models.items() if plan is not None else ():
        yield cursor.item(name, _Kinds.Variable, model.source or "made of models", rank=0)


def _numbers(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    for name in cursor.text.plan.numbers if cursor.text.plan is not None else ():
        yield cursor.item(name, _Kinds.Constant, "a number with a name", rank=0)
    yield cursor.item(
        "curve", _Kinds.Function, "a number by position", rank=2, snippet="curve($1)$0"
    )


def _methods(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    for method in METHODS.values():
        yield cursor.item(
            method.name, _Kinds.Method, method.formula, snippet=f"{method.name}($1)$0"
        )


def _objectives(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    for spec in OBJECTIVES.values():
        quoted = '"$1"' if spec.arguments else ""
        detail = ", ".join(argument.name for argument in spec.arguments)
        yield cursor.item(spec.name, _Kinds.Function, detail, snippet=f"{spec.name}({quoted})$0")
    for name in OBJECTIVES.names()[len(OBJECTIVES) :]:  # their modules aren't imported yet
        yield cursor.item(name, _Kinds.Function, "", snippet=f'{name}("$1")$0')


def _parts(cursor: _Cursor, text: str) -> Iterator[types.CompletionItem]:
    branch = text.partition(".")[0] if "." in text else ""
    if branch:
        names = next((roles for name, roles in ROLES.items() if name == branch), ())
        yield from (cursor.item(name, _Kinds.Field, f"of '{branch}'") for name in names)
        return
    yield from (cursor.item(name, _Kinds.Field, "a residual branch", rank=0) for name in BRANCHES)
    yield cursor.item(NORMS, _Kinds.Field, "all norms of a layer")
    for name, roles in ROLES.items():
        yield from (cursor.item(f"{name}.{role}", _Kinds.Field, "a projection") for role in roles)


def _file_types(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    for kind in FILE_TYPES:
        yield cursor.item(kind.lower(), _Kinds.EnumMember, "a type of GGUF files", rank=0)


def _wants_file_type(objective: str, argument: str) -> bool:
    spec = OBJECTIVES.get(objective)
    found = spec.argument(argument) if spec is not None else None
    return found is not None and found.kind == "file type"


def _arguments(
    cursor: _Cursor, word: Occurrence, *, unnamed: bool
) -> Iterator[types.CompletionItem]:
    """Yield a call's missing parameters if one may begin, and the values of an argument."""
    assert word.call is not None, "an argument is a call's"
    passed = [argument.name.text for argument in word.call.arguments if argument.name is not None]
    name = word.call.name.text
    if unnamed and word.measures and (spec := OBJECTIVES.get(name)) is not None:
        for argument in spec.arguments:
            if argument.name not in passed:
                form = f"{argument.name}=$0"
                yield cursor.item(argument.name, _Kinds.Field, argument.kind, snippet=form)
    elif unnamed and (method := METHODS.get(name)) is not None:
        yield from _parameters(cursor, method, passed)
    if word.kind == "setting" and (method := METHODS.get(name)) is not None:
        last = passed[-1] if passed else ""
        parameter = method.parameter(method.called(last)) if last else None
        words = parameter.words if parameter is not None else ()
        yield from (
            cursor.item(value, _Kinds.EnumMember, f"of '{last}'", rank=0) for value in words
        )
    elif word.kind == "model":
        yield from _models(cursor)
    elif word.measures and passed and _wants_file_type(name, passed[-1]):
        yield from _file_types(cursor)
    elif word.kind == "number" and not word.measures:
        yield from _numbers(cursor)


def _parameters(
    cursor: _Cursor, method: Method, passed: Sequence[str]
) -> Iterator[types.CompletionItem]:
    for parameter in method.parameters:
        if parameter.name not in passed:
            yield cursor.item(
                parameter.name,
                _Kinds.Field,
                bounds_words(parameter),
                rank=0,
                snippet=f"{parameter.name}=$0",
            )


def _layers(cursor: _Cursor) -> Iterator[types.CompletionItem]:
    count = cursor.seen.layers(cursor.text.plan) or layers_named(cursor.text)
    for number in range(count):
        item = cursor.item(f"L{number}", _Kinds.Value, rank=2)
        item.sort_text = f"2L{number:04}"
        yield item


def signature_help(text: EditedText, offset: int) -> types.SignatureHelp | None:
    """Return the call at an offset, its parameters, and the active parameter."""
    piece, rule = text.piece_at(offset)
    before = re.sub(r"[\w.]*$", "", text.text[piece.start if piece else offset : offset])
    running = None if text.is_json else _parsed(before, rule)
    if running is None or "NAME" not in running.accepts():
        return None
    probed = _probed(running, "NAME", _PROBE)
    call = probed.call if probed is not None else None
    if probed is None or call is None or probed.kind in ("method", "objective"):
        return None
    at = [getattr(argument.value, "text", "") for argument in call.arguments].index(_PROBE)
    parameter = argument_for(call, at, measures=probed.measures)
    called = (OBJECTIVES if probed.measures else METHODS).get(call.name.text)
    if called is None:
        return None
    parameters: tuple[Parameter | Argument, ...] = (
        called.parameters if isinstance(called, Method) else called.arguments
    )
    labels = [_parameter_label(parameter) for parameter in parameters]
    shown = [types.ParameterInformation(label) for label in labels]
    label = f"{called.name}({', '.join(labels)})"
    formula = called.formula if isinstance(called, Method) else None
    active = parameters.index(parameter) if parameter is not None else None
    signature = types.SignatureInformation(label, formula, shown, active)
    return types.SignatureHelp([signature], 0, active)


def _parameter_label(parameter: Parameter | Argument) -> str:
    """Return `density: a number in (0, 1]`."""
    words = bounds_words(parameter) if isinstance(parameter, Parameter) else parameter.kind
    return f"{parameter.name}: {words}"


# ---------------------------------------------------------------------------------------- in quotes


def _in_quotes(
    cursor: _Cursor, before: str, rule: str, typed: str
) -> Iterator[types.CompletionItem]:
    """Yield the files and folders that fit the text in quotes."""
    running = _parsed(before, rule)
    probed = _probed(running, "STRING", f'"{_PROBE}"') if running is not None else None
    if probed is None or probed.kind not in ("source", "file", "template"):
        return
    kind = probed.kind
    above, slash, begun = typed.rpartition("/")
    cursor = _Cursor(cursor.text, cursor.offset, cursor.seen, cursor.snippets, begun)
    if kind == "template" and not slash:
        yield from (cursor.item(name, _Kinds.EnumMember, rank=0) for name in CHAT_TEMPLATES)
    if kind != "file" and not slash:
        yield from (cursor.item(prefix, _Kinds.Folder) for prefix in ("./", "../", "~/"))
        return
    start = expanded(above + slash)
    for path in _listed(cursor.text.folder / start):
        if path.is_dir():
            yield cursor.item(
                f"{path.name}/", _Kinds.Folder, _folder_words(path), snippet=path.name
            )
        elif path.suffix in _ENDINGS[kind] or not _ENDINGS[kind]:
            yield cursor.item(path.name, _Kinds.File)


_ENDINGS: dict[str, tuple[str, ...]] = {
    "source": (".tailor", ".gguf"),
    "template": (".jinja",),
    "file": (),
}
"""The endings of files that a text in quotes may name; () allows all files."""


def _listed(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError):
        return []
    return paths[:_MOST_FILES]


def _folder_words(path: Path) -> str:
    for name, words in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
        try:
            if (path / name).exists():
                return words
        except OSError:
            return ""
    return ""
