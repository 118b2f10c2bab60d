"""Parts of statements: models, and methods with their arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gptailor.lang import tree
from gptailor.lang.draft import Draft, count_words, value_of
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, Span, listed
from gptailor.plan.registry import METHODS, OBJECTIVES, Method, Parameter


@final
@dataclass(slots=True)
class Spanned:
    """Spans gathered under a place."""

    spans: dict[Place, Span]
    at: Place = ()

    def note(self, span: Span, *place: str | int) -> None:
        """Record the span of a place inside."""
        self.spans[self.at + place] = span

    def inside(self, *place: str | int) -> "Spanned":
        """Return the same spans, seen from a place inside."""
        return Spanned(self.spans, self.at + place)


def model_of(pick: tree.Word | tree.OneOf, spans: Spanned) -> str | p.OneOfModels:
    """Return a model, or a choice of one."""
    spans.note(pick.span)
    if isinstance(pick, tree.Word):
        return pick.text
    for i, word in enumerate(pick.names):
        spans.note(word.span, "one_of", i)
    return p.built(p.OneOfModels, one_of=tuple(word.text for word in pick.names))


def method_of(draft: Draft, how: tree.CallNode | tree.OneCall, spans: Spanned) -> p.By | None:
    """Return a method, or a choice of methods; None if a fault was found."""
    spans.note(how.span)
    if isinstance(how, tree.CallNode):
        return _call(draft, how, spans)
    calls = [_call(draft, c, spans.inside("one_of", i)) for i, c in enumerate(how.options)]
    methods = tuple(call for call in calls if call is not None)
    return p.built(p.OneOfMethods, one_of=methods) if len(methods) == len(calls) else None


def _call(draft: Draft, node: tree.CallNode, spans: Spanned) -> p.MethodCall | None:
    spans.note(node.span)
    spans.note(node.name.span, "name")
    method = METHODS.get(node.name.text)
    before = len(draft.faults)
    arguments: dict[str, p.Value | tuple[p.Value, ...] | str] = {}
    for name, givens in _bound(draft, node, method).items():
        parameter = method.parameter(name) if method is not None else None
        value = _argument(draft, parameter, givens, spans.inside("arguments", name))
        if value is not None:
            arguments[name] = value
    if len(draft.faults) > before:
        return None
    return p.built(p.MethodCall, name=node.name.text, arguments=arguments)


def _argument(
    draft: Draft, parameter: Parameter | None, givens: Sequence[tree.ArgumentNode], spans: Spanned
) -> p.Value | tuple[p.Value, ...] | str | None:
    """Return an argument's value; its parameter tells a word from a number's name.

    An argument of an unknown method or parameter keeps its words, for the check.
    """
    spans.note(givens[0].span.to(givens[-1].span))
    first = givens[0].value
    if isinstance(first, tree.Word) and (parameter is None or parameter.words):
        return first.text
    listed = len(givens) == 1 and isinstance(first, tree.EachSource)
    nodes = first.numbers if isinstance(first, tree.EachSource) and listed else givens
    values: list[p.Value] = []
    for i, node in enumerate(nodes):
        numeral = node.value if isinstance(node, tree.ArgumentNode) else node
        if (number := value_of(draft, numeral)) is not None:
            values.append(number)
        if listed or (parameter is not None and parameter.variadic):
            spans.note(node.span, i)
    if not values:
        return None
    return tuple(values) if listed or (parameter and parameter.variadic) else values[0]


def _bound(
    draft: Draft, node: tree.CallNode, method: Method | None
) -> dict[str, tuple[tree.ArgumentNode, ...]]:
    """Return each argument under its name; an unknown method keeps its named ones for the check."""
    positional = tuple(argument for argument in node.arguments if argument.name is None)
    bound: dict[str, tuple[tree.ArgumentNode, ...]] = {}
    if method is not None and positional and method.variadic:
        bound[method.variadic.name] = positional
    elif method is not None and positional:
        free = [parameter.name for parameter in method.positional]
        bound |= {n: (g,) for n, g in zip(free, positional, strict=False)}
        if len(positional) > len(free):
            draft.fault(
                "P305",
                f"'{method.name}' takes {count_words(len(free), 'argument')} without a name, "
                f"not {len(positional)}",
                positional[len(free)].span,
                _taken(method),
            )
    named = False
    for argument in node.arguments:
        if argument.name is not None:
            named = True
            name = method.called(argument.name.text) if method is not None else argument.name.text
            if name in bound:
                draft.fault("P305", f"'{name}' is given twice", argument.span)
            bound.setdefault(name, (argument,))
        elif named:
            draft.fault("P305", "an argument without a name stands after one with a name",
                        argument.span)  # fmt: skip
    return bound


def _taken(method: Method) -> str:
    """Return help that lists a method's arguments, those that are given by name alone last."""
    names = [parameter.name for parameter in method.positional]
    named = [f"{parameter.name}=…" for parameter in method.parameters if parameter.named]
    return f"its arguments are {', '.join(names + named)}" if names or named else ""


def measure_arguments(
    draft: Draft, call: tree.CallNode, spans: dict[Place, Span]
) -> dict[str, int | float | str]:
    """Return an objective's arguments by name; unnamed ones take the free names in order."""
    spec = OBJECTIVES.get(call.name.text)
    free = [argument.name for argument in spec.arguments] if spec else []
    arguments: dict[str, int | float | str] = {}
    for i, node in enumerate(call.arguments):
        value = node.value
        if node.name is None and spec is not None and i >= len(free):
            most = f"{listed(free)}, no more" if free else "no arguments"
            draft.fault("P305", f"'{spec.name}' takes {most}", node.span)
            continue
        name = node.name.text if node.name else (free[i] if i < len(free) else f"argument {i}")
        if name in arguments:
            draft.fault("P305", f"'{name}' is given twice", node.span)
        if isinstance(value, tree.Between | tree.OneNumber | tree.Curving):
            draft.fault("P605", "an objective can't contain choices or curves", value.span)
            continue
        if isinstance(value, tree.EachSource):
            draft.fault("P603", "an argument of an objective can't be a list", value.span)
            continue
        result = value_of(draft, value) if isinstance(value, tree.Fixed) else value.text
        if isinstance(result, int | float | str):
            arguments[name] = result
            spans["arguments", name] = value.span
    return arguments
