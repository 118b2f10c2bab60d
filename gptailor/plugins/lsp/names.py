"""The words of a text with their kinds: a model, a number, a method, a part, a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

from gptailor.lang import tree
from gptailor.lang.lower import parts_of
from gptailor.plan.faults import Span
from gptailor.plan.registry import METHODS, OBJECTIVES, Argument, Parameter

NameKind = Literal[
    "model", "number", "method", "objective", "parameter", "setting", "part", "dtype", "function",
    "file type", "layer", "keyword", "source", "revision", "file", "template", "argument",
]  # fmt: skip
"""`layer` is a base's position or a model's layer; `file` has calibration text or samples."""

_WORDS: dict[tuple[type[tree.TreeNode] | str, str], NameKind] = {
    ("declare", "name"): "model",
    ("declare", "on"): "model",
    ("let", "name"): "number",
    (tree.AllOf, "names"): "model",
    (tree.OneOf, "names"): "model",
    (tree.AnyOf, "names"): "model",
    (tree.Picked, "model"): "model",
    ("heal", "teacher"): "model",
    (tree.HealTextNode, "teacher"): "model",
    (tree.HealTextNode, "weight"): "number",
    (tree.BoundNode, "of"): "model",
    (tree.Merging, "shares"): "number",
    (tree.EachSource, "numbers"): "number",
    ("scaling", "factor"): "number",
    ("dropping_some", "count"): "number",
    ("cutting", "size"): "number",
    (tree.SettingNode, "value"): "number",
    (tree.Curving, "knots"): "number",
    (tree.Curving, "name"): "function",
    ("bridging", "by"): "function",
    ("dtype", "name"): "dtype",
    ("gguf", "name"): "file type",
    (tree.Range, "part"): "part",
    ("others", "part"): "part",
}
"""The kinds of words by their node, or rule, and part; all other words are keywords."""

_STRINGS: dict[type[tree.TreeNode] | str, NameKind] = {
    "declare": "source",
    "cutting": "file",
    "bridging": "file",
    "gguf": "file",
    tree.HealTextNode: "file",
    tree.AnswersNode: "file",
    "rest": "template",
}
"""The kinds of texts in quotes by their node or rule; a model may also have a `revision`."""


@final
@dataclass(frozen=True, slots=True)
class Occurrence:
    """A word of the text, with its kind and its place.

    `declares` is whether it gives a name. `call` is the call that it is a part of, and `measures`
    whether that call is an objective. A layer has its `number` and the `models` that it belongs to;
    () means that it is a position of the base.
    """

    kind: NameKind
    text: str
    span: Span
    declares: bool = False
    call: tree.CallNode | None = None
    measures: bool = False
    number: int = -1
    models: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Return whether the word is a name that a plan gives."""
        return self.kind in ("model", "number")


def occurrences(file: tree.File) -> tuple[Occurrence, ...]:
    """Return all words of a tree, in the text's order."""
    words = (word for statement in file.statements for word in _of(statement))
    return tuple(sorted(words, key=lambda word: (word.span.start, word.span.end)))


def _of(node: tree.TreeNode, models: tuple[str, ...] = ()) -> Iterator[Occurrence]:
    """Yield the words of a node; `models` are the models that its layers belong to."""
    match node:
        case tree.CallNode():
            yield from _of_call(node, measures=False)
            return
        case tree.Statement(rule="objective" | "bounded"):
            yield from _of_call(parts_of(node)["measure"], measures=True)
        case tree.Picked():
            names = node.model.names if isinstance(node.model, tree.OneOf) else (node.model,)
            models = tuple(name.text for name in names)
    parts = {name: getattr(node, name) for name in node._fields if name != "parts"}
    if isinstance(node, tree.Statement):
        parts |= parts_of(node)
    for name, value in parts.items():
        for child in value if isinstance(value, tuple) else (value,):
            if isinstance(child, tree.Word | tree.String | tree.LayerWord):
                yield _word(node, name, child, models)
            elif isinstance(child, tree.TreeNode) and name != "measure":
                yield from _of(child, models)


def _word(
    node: tree.TreeNode,
    name: str,
    word: tree.Word | tree.String | tree.LayerWord,
    models: tuple[str, ...],
) -> Occurrence:
    kind_of_node = node.rule if isinstance(node, tree.Statement) else type(node)
    if isinstance(word, tree.LayerWord):
        return Occurrence("layer", f"L{word.number}", word.span, number=word.number, models=models)
    if isinstance(word, tree.String):
        kind = "revision" if name == "revision" else _STRINGS.get(kind_of_node, "argument")
        return Occurrence(kind, word.text, word.span)
    kind = _WORDS.get((kind_of_node, name), "keyword")
    if isinstance(node, tree.Statement) and node.rule == "rest" and name == "origin":
        kind = "model" if node.parts[0].text == "chat_template" else "keyword"
    if isinstance(node, tree.SettingNode) and node.name.text in ("rank", "loss"):
        kind = "keyword"  # `full`, `answers`
    declares = kind_of_node in ("declare", "let") and name == "name"
    return Occurrence(kind, word.text, word.span, declares)


def _of_call(call: tree.CallNode, *, measures: bool) -> Iterator[Occurrence]:
    kind: NameKind = "objective" if measures else "method"
    yield Occurrence(kind, call.name.text, call.name.span, call=call, measures=measures)
    for i, argument in enumerate(call.arguments):
        if argument.name is not None:
            name = argument.name
            yield Occurrence("parameter", name.text, name.span, call=call, measures=measures)
        if isinstance(argument.value, tree.Word | tree.String):
            kind = value_kind(argument_for(call, i, measures=measures), argument.value)
            text, span = argument.value.text, argument.value.span
            yield Occurrence(kind, text, span, call=call, measures=measures)
        else:
            yield from _of(argument.value)


def argument_for(call: tree.CallNode, index: int, *, measures: bool) -> Parameter | Argument | None:
    """Return the method's parameter or the objective's argument at an index of a call."""
    argument = call.arguments[index]
    if measures:
        spec = OBJECTIVES.get(call.name.text)
        free = spec.arguments if spec else ()
        if argument.name is not None:
            return spec.argument(argument.name.text) if spec else None
        return free[index] if index < len(free) else None
    method = METHODS.get(call.name.text)
    if method is None:
        return None
    if argument.name is not None:
        return method.parameter(method.called(argument.name.text))
    if method.variadic is not None:
        return method.variadic
    return method.positional[index] if index < len(method.positional) else None


def value_kind(parameter: Parameter | Argument | None, value: tree.Word | tree.String) -> NameKind:
    """Return the kind of a word or a text by the parameter that it is the value of."""
    if isinstance(parameter, Argument):
        kinds: dict[str, NameKind] = {"path": "file", "model": "model"}
        return kinds.get(parameter.kind, "argument")
    if isinstance(value, tree.String):
        return "argument"
    return "setting" if parameter is not None and parameter.words else "number"
