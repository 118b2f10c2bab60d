"""Parts of statements: models, methods with their arguments, and recipes for lists of layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from gptailor.lang import tree
from gptailor.lang.draft import (
    Draft,
    Placed,
    Positions,
    count_words,
    in_step,
    listed_parts,
    placed_data,
    placed_number,
    positions_of,
    spanned,
    spans_in,
    value_of,
)
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, Span, listed
from gptailor.plan.registry import METHODS, OBJECTIVES, Method, Parameter
from gptailor.plan.sites import has_curve, layered, revalued, sources


def model_of(pick: tree.Word | tree.OneOf) -> Placed:
    """Return a model, or a choice of one."""
    if isinstance(pick, tree.Word):
        return spanned(pick, pick.text)
    options = listed_parts([spanned(word, word.text) for word in pick.names])
    return placed_data(p.OneOfModels, pick.span, one_of=options)


def _method_of(draft: Draft, how: tree.CallNode | tree.OneCall | None) -> Placed | None:
    """Return a method, or a choice of methods; None without one, and if a fault was found."""
    if not isinstance(how, tree.OneCall):
        return None if how is None else _call(draft, how)
    calls = [_call(draft, call) for call in how.options]
    methods = [call for call in calls if call is not None]
    if len(methods) < len(calls):
        return None
    return placed_data(p.OneOfMethods, how.span, one_of=listed_parts(methods))


def _call(draft: Draft, node: tree.CallNode) -> Placed | None:
    method = METHODS.get(node.name.text)
    before = len(draft.faults)
    arguments: dict[str | int, Placed] = {}
    for name, givens in _bound(draft, node, method).items():
        parameter = method.parameter(name) if method is not None else None
        value = _argument(draft, parameter, givens)
        if value is not None:
            arguments[name] = value
    if len(draft.faults) > before:
        return None
    given = Placed({name: each.entry for name, each in arguments.items()}, spans_in(arguments))
    name_of = spanned(node.name, node.name.text)
    return placed_data(p.MethodCall, node.span, name=name_of, arguments=given)


def _argument(
    draft: Draft, parameter: Parameter | None, givens: Sequence[tree.ArgumentNode]
) -> Placed | None:
    """Return an argument's value; its parameter tells a word from a number's name.

    An argument of an unknown method or parameter keeps its words, for the check.
    """
    spans: dict[Place, Span] = {(): givens[0].span.to(givens[-1].span)}
    first = givens[0].value
    if isinstance(first, tree.Word) and (parameter is None or parameter.words):
        return Placed(first.text, spans)
    listed = len(givens) == 1 and isinstance(first, tree.EachSource)
    several = listed or (parameter is not None and parameter.variadic)
    nodes = first.numbers if isinstance(first, tree.EachSource) and listed else givens
    values: list[p.Value] = []
    for i, node in enumerate(nodes):
        numeral = node.value if isinstance(node, tree.ArgumentNode) else node
        if (number := value_of(draft, numeral)) is not None:
            values.append(number)
        if several:
            spans[i,] = node.span
    if not values:
        return None
    return Placed(tuple(values) if several else values[0], spans)


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
                f"'{method.name}' takes {count_words(len(free), 'unnamed argument')}, "
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
                draft.fault(
                    "P305", f"'{name}' is given twice", argument.span, "keep one of the two"
                )
            bound.setdefault(name, (argument,))
        elif named:
            draft.fault("P305", "an unnamed argument follows a named one", argument.span,
                        "write unnamed arguments first")  # fmt: skip
    return bound


def _taken(method: Method) -> str:
    """Return help that lists a method's arguments, arguments that are given by name alone last."""
    names = [parameter.name for parameter in method.positional]
    named = [f"{parameter.name}=…" for parameter in method.parameters if parameter.named]
    return f"its arguments are {', '.join(names + named)}" if names or named else ""


def measure_of(draft: Draft, call: tree.CallNode) -> dict[str, Placed]:
    """Return an objective's name and its arguments; unnamed ones take the free names in order."""
    spec = OBJECTIVES.get(call.name.text)
    free = [argument.name for argument in spec.arguments] if spec else []
    arguments: dict[str | int, Placed] = {}
    for i, node in enumerate(call.arguments):
        value = node.value
        if node.name is None and spec is not None and i >= len(free):
            most = f"only {listed(free)}" if free else "no arguments"
            draft.fault("P305", f"'{spec.name}' takes {most}", node.span, "remove this argument")
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
        if isinstance(value, tree.Fixed):
            result = placed_number(draft, value)
        else:
            result = spanned(value, value.text)
        if result is not None:
            arguments[name] = result
    given = Placed({name: each.entry for name, each in arguments.items()}, spans_in(arguments))
    return {"name": spanned(call.name, call.name.text), "arguments": given}


# ------------------------------------------------------------------------------------- recipes


@final
@dataclass(frozen=True, slots=True)
class Pattern:
    """A recipe for a list of layers: at its n-th target it takes the n-th of each source's layers.

    `layers` are each source's, None for embedding, norm and head.
    """

    made: Placed
    layers: tuple[Positions | None, ...]

    def at(self, n: int) -> Placed:
        """Return the recipe for the n-th target, with the spans of its source layers."""
        recipe = self.made.entry
        spans = dict(self.made.spans)
        for (where, _), positions in zip(sources(recipe), self.layers, strict=True):
            if positions is not None and not isinstance(recipe, p.Subset):
                spans[*where, "layer"] = positions.at[n].span
        numbers = [each.at[n].number if each else None for each in self.layers]
        return Placed(layered(recipe, numbers), spans)

    def over(self, first: int, last: int) -> "Pattern":
        """Return the pattern with its curves over these positions, unless they have their own."""
        if not has_curve(self.made.entry):
            return self
        recipe = revalued(self.made.entry, lambda value: p.over_positions(value, first, last))
        return replace(self, made=Placed(recipe, self.made.spans))


def models_pattern(draft: Draft, origin: tree.From, at: Positions | None) -> Pattern | None:
    """Return the pattern of `from math`, `from math, code by …`, `from any of math, code`."""
    before = len(draft.faults)
    how = _method_of(draft, origin.by)
    named = origin.models
    picks: Sequence[tree.Word | tree.OneOf]
    picks = [named] if isinstance(named, tree.OneOf) else named.names
    models = [model_of(pick) for pick in picks]
    if isinstance(named, tree.AnyOf):
        made = placed_data(p.Subset, None, any_of=listed_parts(models), by=how)
    elif origin.by is not None:
        made = _merge(models, by=how)
    else:
        made = _take(models[0])
        if len(models) > 1:
            draft.fault("P307", "several models are given without a method to merge them",
                        named.span, "add 'by' and a method, such as 'by linear()'")  # fmt: skip
    return Pattern(made, (at,) * len(models)) if len(draft.faults) == before else None


def _take(model: Placed) -> Placed:
    return placed_data(p.Take, None, take=placed_data(p.LayerOf, None, model=model))


def _merge(models: Sequence[Placed], span: Span | None = None, **how: Placed | None) -> Placed:
    layers = [placed_data(p.LayerOf, None, model=model) for model in models]
    return placed_data(p.Merge, span, merge=listed_parts(layers), **how)


def made_pattern(
    draft: Draft, node: tree.Picked | tree.Merging, *, taker: str = ""
) -> Pattern | None:
    """Return the pattern of `L12 one of (code, chat)`, `merge(L12 code, L14 chat, 0.5) by …`."""
    if isinstance(node, tree.Picked):
        at = positions_of(draft, node.layers, taker=taker)
        return Pattern(_take(model_of(node.model)), (at,)) if at is not None else None
    before = len(draft.faults)
    lists = [positions_of(draft, source.layers, taker=taker) for source in node.sources]
    models = [model_of(source.model) for source in node.sources]
    made = _merge(models, node.span, by=_method_of(draft, node.by), share=_share(draft, node))
    positions = tuple(at for at in lists if at is not None)
    if len(draft.faults) == before:
        for other in positions[1:]:
            in_step(draft, positions[0], other)
    return Pattern(made, positions) if len(draft.faults) == before else None


def _share(draft: Draft, node: tree.Merging) -> Placed | None:
    if not node.shares:
        return None
    if len(node.shares) > 1 or len(node.sources) != 2:
        numbers = count_words(len(node.shares), "number")
        named = count_words(len(node.sources), "source")
        draft.fault("P308", f"merge has {numbers} for {named}", node.shares[0].span,
                    "a number is the second source's share; for other merges write "
                    "'by linear(…)' with a number for each source")  # fmt: skip
        return None
    if node.by is not None:
        message = "expected a number or a method for a merge, got both"
        help_ = "give the number to the method, or remove 'by'"
        draft.fault("P308", message, node.shares[0].span, help_)
        return None
    return placed_number(draft, node.shares[0])
