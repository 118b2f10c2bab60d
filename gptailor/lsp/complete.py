"""What may be written at a place: the grammar's parser says which words, its tree which names."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import lark
from lark import Token
from lsprotocol import types

from gptailor.checkpoint.files import expanded
from gptailor.lang import tree
from gptailor.lang.lexicon import spelled
from gptailor.lang.parse import parser
from gptailor.lang.transform import statement_of
from gptailor.lsp.hover import KEYWORDS, bounds_words
from gptailor.lsp.names import Occurrence, argument_for, occurrences
from gptailor.lsp.text import EditedText, SeenModels, layers_named
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

_PROBE = "__here__"
_SAMPLES = {
    "LAYER": "L0", "NAME": "x", "NUMBER": "1", "STRING": '"x"', "SIZE": "1M", "COMPARISON": "<=",
}  # fmt: skip
"""A text for each terminal that is no one word."""
_MOST_STEPS = 400
"""Parser states that are looked at for how a statement may end."""
_MOST_FILES = 500

_Kinds = types.CompletionItemKind


@final
@dataclass(frozen=True, slots=True)
class _Here:
    """What is wanted: the text, where, what was typed of the word, and what the client can show."""

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
        said: str = "",
    ) -> types.CompletionItem:
        """An item that takes the place of what was typed of it."""
        span = Span(self.offset - len(self.begun), self.offset)
        formed = bool(snippet) and self.snippets
        plain = label if formed or not snippet else re.sub(r"\$\d", "", snippet)
        form = types.InsertTextFormat
        return types.CompletionItem(
            label,
            kind=kind,
            detail=detail or None,
            documentation=types.MarkupContent(types.MarkupKind.Markdown, said) if said else None,
            sort_text=f"{rank}{label}",
            insert_text_format=form.Snippet if formed else form.PlainText,
            text_edit=types.TextEdit(self.text.lines.range(span), snippet if formed else plain),
        )


def completions(
    text: EditedText, offset: int, seen: SeenModels, *, snippets: bool = False
) -> list[types.CompletionItem]:
    """All that may stand at an offset, as far as it was typed there."""
    start, _ = text.lines.line_span(text.lines.position(offset).line)
    line = re.sub(r'"[^"]*"', lambda quoted: " " * len(quoted[0]), text.text[start:offset])
    if "#" in line.partition('"')[0] or text.is_json:
        return []
    piece, rule = text.piece_at(offset)
    begin = offset if piece is None else piece.start
    if '"' in line:
        quote = start + line.index('"')
        here = _Here(text, offset, seen, snippets)
        return list(_in_quotes(here, text.text[begin:quote], rule, text.text[quote + 1 : offset]))
    begun = re.search(r"([^\W\d]\w*)?$", text.text[begin:offset])
    here = _Here(text, offset, seen, snippets, begun[0] if begun else "")
    return list(_items(here, text.text[begin : offset - len(here.begun)], rule))


# ------------------------------------------------------------------------------- what is accepted


def _parsed(before: str, rule: str) -> Any:
    """The parser after a piece of text; None if it doesn't get so far."""
    running = parser().parse_interactive(before, start=rule)
    try:
        for _ in running.iter_parse():
            pass
    except lark.UnexpectedInput:
        return None
    return running


def _probed(running: Any, terminal: str, text: str) -> tuple[Occurrence, tree.Statement] | None:
    """What a token would be that came now: the shortest statement that it stands in says so."""
    try:
        running = running.copy()
        running.feed_token(_token(terminal, text))
    except lark.UnexpectedInput:
        return None
    waiting, known = deque([running]), set()
    for _ in range(_MOST_STEPS):
        if not waiting:
            break
        running = waiting.popleft()
        accepted = running.accepts()
        if "$END" in accepted:
            statement = statement_of(running.feed_eof(), Span(0, 0))
            words = occurrences(tree.File(Span(0, 0), (statement,), ()))
            found = (word for word in words if _PROBE in word.text)
            return next(((word, statement) for word in found), None)
        for name in sorted(accepted, key=lambda name: (name in _SAMPLES, name)):
            after = running.copy()
            after.feed_token(_token(name, _SAMPLES.get(name) or spelled().get(name, "")))
            state = tuple(after.parser_state.state_stack)
            if state not in known:
                known.add(state)
                waiting.append(after)
    return None


def _token(terminal: str, text: str) -> Token:
    return Token(terminal, text, start_pos=0, end_pos=0)


# ----------------------------------------------------------------------------------- words, names


def _items(here: _Here, before: str, rule: str) -> Iterator[types.CompletionItem]:
    running = _parsed(before, rule)
    if running is None:
        return
    accepted: set[str] = running.accepts()
    if "NAME" in accepted and (found := _probed(running, "NAME", _PROBE)) is not None:
        named = running.copy()
        named.feed_token(_token("NAME", _PROBE))
        word = found[0]
        if word.call is not None and word.kind not in ("method", "objective"):
            yield from _arguments(here, word, unnamed="EQUAL" in named.accepts())
        else:
            yield from _names(here, word)
    if "LAYER" in accepted:
        yield from _layers(here)
    for word_ in sorted(spelled().get(name, "") for name in accepted):
        if word_[:1].isalpha():
            block = f"{word_} {{\n\t$0\n}}" if word_ in ("stack", "search") else ""
            yield here.item(
                word_,
                _Kinds.Keyword,
                KEYWORDS.get(word_, ""),
                rank=3,
                snippet=here.snippets * block,
            )


def _names(here: _Here, word: Occurrence) -> Iterator[types.CompletionItem]:
    """What a word of that kind may be."""
    offered: dict[str, Callable[[_Here], Iterable[types.CompletionItem]]] = {
        "model": _models,
        "number": _numbers,
        "function": _numbers,
        "method": _methods,
        "objective": _objectives,
        "dtype": lambda here: (here.item(name, _Kinds.EnumMember) for name in DTYPES),
    }
    if word.kind == "part":
        yield from _parts(here, word.text)
    elif not word.declares and word.kind in offered:
        yield from offered[word.kind](here)


def _models(here: _Here) -> Iterator[types.CompletionItem]:
    plan = here.text.plan
    for name, model in plan.models.items() if plan is not None else ():
        yield here.item(name, _Kinds.Variable, model.source or "made of models", rank=0)


def _numbers(here: _Here) -> Iterator[types.CompletionItem]:
    for name in here.text.plan.numbers if here.text.plan is not None else ():
        yield here.item(name, _Kinds.Constant, "a number with a name", rank=0)
    yield here.item("curve", _Kinds.Function, "a number by position", rank=2, snippet="curve($1)$0")


def _methods(here: _Here) -> Iterator[types.CompletionItem]:
    for method in METHODS.values():
        yield here.item(method.name, _Kinds.Method, method.formula, snippet=f"{method.name}($1)$0")


def _objectives(here: _Here) -> Iterator[types.CompletionItem]:
    for spec in OBJECTIVES.values():
        quoted = '"$1"' if spec.arguments else ""
        detail = ", ".join(argument.name for argument in spec.arguments)
        yield here.item(spec.name, _Kinds.Function, detail, snippet=f"{spec.name}({quoted})$0")


def _parts(here: _Here, text: str) -> Iterator[types.CompletionItem]:
    branch = text.partition(".")[0] if "." in text else ""
    if branch:
        names = next((roles for one, roles in ROLES.items() if one == branch), ())
        yield from (here.item(name, _Kinds.Field, f"of '{branch}'") for name in names)
        return
    yield from (here.item(name, _Kinds.Field, "a residual branch", rank=0) for name in BRANCHES)
    yield here.item(NORMS, _Kinds.Field, "all norms of a layer")
    for one, roles in ROLES.items():
        yield from (here.item(f"{one}.{role}", _Kinds.Field, "a projection") for role in roles)


def _arguments(here: _Here, word: Occurrence, *, unnamed: bool) -> Iterator[types.CompletionItem]:
    """The parameters of a call that aren't given yet, where one may begin, and their values."""
    assert word.call is not None, "an argument is a call's"
    given = {one.name.text for one in word.call.arguments if one.name is not None}
    name = word.call.name.text
    if unnamed and word.measures and (spec := OBJECTIVES.get(name)) is not None:
        for argument in spec.arguments:
            if argument.name not in given:
                form = f"{argument.name}=$0"
                yield here.item(argument.name, _Kinds.Field, argument.kind, snippet=form)
    elif unnamed and (method := METHODS.get(name)) is not None:
        yield from _parameters(here, method, given)
    if word.kind == "setting" and (method := METHODS.get(name)) is not None:
        last = next((one.name.text for one in reversed(word.call.arguments) if one.name), "")
        found = method.parameter(method.called(last)) if last else None
        words = found.words if found is not None else ()
        yield from (here.item(one, _Kinds.EnumMember, f"of '{last}'", rank=0) for one in words)
    elif word.kind == "model":
        yield from _models(here)
    elif word.kind == "number" and not word.measures:
        yield from _numbers(here)


def _parameters(here: _Here, method: Method, given: set[str]) -> Iterator[types.CompletionItem]:
    for one in method.parameters:
        if one.name not in given:
            yield here.item(
                one.name, _Kinds.Field, bounds_words(one), rank=0, snippet=f"{one.name}=$0"
            )


def _layers(here: _Here) -> Iterator[types.CompletionItem]:
    count = here.seen.layers(here.text.plan) or layers_named(here.text)
    for number in range(count):
        item = here.item(f"L{number}", _Kinds.Value, rank=2)
        item.sort_text = f"2L{number:04}"
        yield item


def signature_help(text: EditedText, offset: int) -> types.SignatureHelp | None:
    """The call that an offset is in, its parameters, and which of them is given there."""
    piece, rule = text.piece_at(offset)
    before = re.sub(r"[\w.]*$", "", text.text[piece.start if piece else offset : offset])
    running = None if text.is_json else _parsed(before, rule)
    if running is None or "NAME" not in running.accepts():
        return None
    found = _probed(running, "NAME", _PROBE)
    call = found[0].call if found is not None else None
    if found is None or call is None or found[0].kind in ("method", "objective"):
        return None
    at = [getattr(given.value, "text", "") for given in call.arguments].index(_PROBE)
    here = argument_for(call, at, measures=found[0].measures)
    known = (OBJECTIVES if found[0].measures else METHODS).get(call.name.text)
    if known is None:
        return None
    given: tuple[Parameter | Argument, ...] = (
        known.parameters if isinstance(known, Method) else known.arguments
    )
    labels = [_parameter_label(one) for one in given]
    shown = [types.ParameterInformation(said) for said in labels]
    label = f"{known.name}({', '.join(labels)})"
    said = known.formula if isinstance(known, Method) else None
    active = given.index(here) if here is not None else None
    return types.SignatureHelp([types.SignatureInformation(label, said, shown, active)], 0, active)


def _parameter_label(one: Parameter | Argument) -> str:
    """`density: a number in (0, 1]`."""
    return f"{one.name}: {bounds_words(one) if isinstance(one, Parameter) else one.kind}"


# ---------------------------------------------------------------------------------------- in quotes


def _in_quotes(here: _Here, before: str, rule: str, typed: str) -> Iterator[types.CompletionItem]:
    """Files and folders, as what the text in quotes is for needs them."""
    running = _parsed(before, rule)
    found = _probed(running, "STRING", f'"{_PROBE}"') if running is not None else None
    if found is None or found[0].kind not in ("source", "file", "template"):
        return
    kind = found[0].kind
    above, slash, begun = typed.rpartition("/")
    here = _Here(here.text, here.offset, here.seen, here.snippets, begun)
    if kind == "template" and not slash:
        yield from (here.item(name, _Kinds.EnumMember, rank=0) for name in CHAT_TEMPLATES)
    if kind != "file" and not slash:
        yield from (here.item(one, _Kinds.Folder) for one in ("./", "../", "~/"))
        return
    start = expanded(above + slash)
    for path in _listed(here.text.folder / start):
        if path.is_dir():
            yield here.item(f"{path.name}/", _Kinds.Folder, _folder_said(path), snippet=path.name)
        elif path.suffix in _ENDINGS[kind] or not _ENDINGS[kind]:
            yield here.item(path.name, _Kinds.File)


_ENDINGS: dict[str, tuple[str, ...]] = {
    "source": (".tailor", ".gguf"),
    "template": (".jinja",),
    "file": (),
}
"""The files that a text in quotes may name; none: all."""


def _listed(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError):
        return []
    return found[:_MOST_FILES]


def _folder_said(path: Path) -> str:
    for name, said in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
        try:
            if (path / name).exists():
                return said
        except OSError:
            return ""
    return ""
