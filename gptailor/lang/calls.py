"""What statements name: models, and methods with their arguments."""

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
        """This place inside has that span."""
        self.spans[self.at + place] = span

    def inside(self, *place: str | int) -> "Spanned":
        """The same spans, seen from a place inside."""
        return Spanned(self.spans, self.at + place)


def model_of(pick: tree.Word | tree.OneOf, spans: Spanned) -> str | p.OneOfModels:
    """One model, or a choice of one."""
    spans.note(pick.span)
    if isinstance(pick, tree.Word):
        return pick.text
    for i, word in enumerate(pick.names):
        spans.note(word.span, "one_of", i)
    return p.built(p.OneOfModels, one_of=tuple(word.text for word in pick.names))


def method_of(draft: Draft, how: tree.CallNode | tree.OneCall, spans: Spanned) -> p.By | None:
    """A method, or a choice of methods."""
    spans.note(how.span)
    if isinstance(how, tree.CallNode):
        return _call(draft, how, spans)
    calls = [_call(draft, c, spans.inside("one_of", i)) for i, c in enumerate(how.options)]
    found = tuple(call for call in calls if call is not None)
    return p.built(p.OneOfMethods, one_of=found) if len(found) == len(calls) else None


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
    """What an argument comes to: whether a bare name is a word or a number's, its parameter says.

    What is unknown keeps its words, for the check.
    """
    spans.note(givens[0].span.to(givens[-1].span))
    first = givens[0].value
    if isinstance(first, tree.Word) and (parameter is None or parameter.words):
        return first.text
    listed = len(givens) == 1 and isinstance(first, tree.EachSource)
    said = first.numbers if isinstance(first, tree.EachSource) and listed else givens
    found: list[p.Value] = []
    for i, one in enumerate(said):
        numeral = one.value if isinstance(one, tree.ArgumentNode) else one
        if (number := value_of(draft, numeral)) is not None:
            found.append(number)
        if listed or (parameter is not None and parameter.variadic):
            spans.note(one.span, i)
    if not found:
        return None
    return tuple(found) if listed or (parameter and parameter.variadic) else found[0]


def _bound(
    draft: Draft, node: tree.CallNode, method: Method | None
) -> dict[str, tuple[tree.ArgumentNode, ...]]:
    """Each argument under its name; an unknown method keeps its named ones for the check."""
    positional = tuple(given for given in node.arguments if given.name is None)
    bound: dict[str, tuple[tree.ArgumentNode, ...]] = {}
    if method is not None and positional and method.variadic:
        bound[method.variadic.name] = positional
    elif method is not None and positional:
        free = [parameter.name for parameter in method.positional]
        bound |= {n: (g,) for n, g in zip(free, positional, strict=False)}
        if len(positional) > len(free):
            draft.fault(
                "P305",
                f"'{method.name}' takes {count_words(len(free), 'argument')}, "
                f"not {len(positional)}",
                positional[len(free)].span,
                _taken(method),
            )
    named = False
    for given in node.arguments:
        if given.name is not None:
            named = True
            name = method.called(given.name.text) if method is not None else given.name.text
            if name in bound:
                draft.fault("P305", f"'{name}' is given twice", given.span)
            bound.setdefault(name, (given,))
        elif named:
            draft.fault("P305", "an argument without a name stands after one with a name",
                        given.span)  # fmt: skip
    return bound


def _taken(method: Method) -> str:
    """What a method's arguments are, those that are given by name alone last."""
    names = [parameter.name for parameter in method.positional]
    named = [f"{parameter.name}=…" for parameter in method.parameters if parameter.named]
    return f"its arguments are {', '.join(names + named)}" if names or named else ""


def measure_arguments(
    draft: Draft, call: tree.CallNode, spans: dict[Place, Span]
) -> dict[str, int | float | str]:
    """An objective's arguments by name; those without one have the names that are free."""
    spec = OBJECTIVES.get(call.name.text)
    free = [argument.name for argument in spec.arguments] if spec else []
    arguments: dict[str, int | float | str] = {}
    for i, given in enumerate(call.arguments):
        value = given.value
        if given.name is None and spec is not None and i >= len(free):
            most = f"{listed(free)}, no more" if free else "no arguments"
            draft.fault("P305", f"'{spec.name}' takes {most}", given.span)
            continue
        name = given.name.text if given.name else (free[i] if i < len(free) else f"argument {i}")
        if name in arguments:
            draft.fault("P305", f"'{name}' is given twice", given.span)
        if isinstance(value, tree.Between | tree.OneNumber | tree.Curving):
            draft.fault("P605", "no choices and no curves stand in a search block", value.span)
            continue
        if isinstance(value, tree.EachSource):
            draft.fault("P603", "an argument of an objective is no list", value.span)
            continue
        found = value_of(draft, value) if isinstance(value, tree.Fixed) else value.text
        if isinstance(found, int | float | str):
            arguments[name] = found
            spans["arguments", name] = value.span
    return arguments
