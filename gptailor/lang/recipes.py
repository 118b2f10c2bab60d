"""Parts of statements: models, methods with their arguments, and recipes for lists of layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from gptailor.lang import tree
from gptailor.lang.draft import Draft, Positions, count_words, in_step, positions_of, value_of
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, Span, listed
from gptailor.plan.registry import METHODS, OBJECTIVES, Method, Parameter
from gptailor.plan.sites import has_curve, layered, revalued, sources


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


# ------------------------------------------------------------------------------------- recipes


@final
@dataclass(frozen=True, slots=True)
class Pattern:
    """A recipe for a list of layers: at its n-th target it takes the n-th of each source's layers.

    `layers` are those of each source, None for embedding, norm and head.
    """

    recipe: p.Recipe
    layers: tuple[Positions | None, ...]
    spans: dict[Place, Span]

    def at(self, n: int) -> p.Recipe:
        """Return the recipe for the n-th target."""
        return layered(self.recipe, [each.at[n].number if each else None for each in self.layers])

    def over(self, first: int, last: int) -> "Pattern":
        """Return the pattern with its curves over these positions, unless they have their own."""
        if not has_curve(self.recipe):
            return self
        recipe = revalued(self.recipe, lambda value: p.over_positions(value, first, last))
        return replace(self, recipe=recipe)

    def all_spans(self, n: int) -> dict[Place, Span]:
        """Return the spans of the n-th target's recipe: the common ones, and its source layers."""
        spans = dict(self.spans)
        for (where, _), positions in zip(sources(self.recipe), self.layers, strict=True):
            if positions is not None and not isinstance(self.recipe, p.Subset):
                spans["recipe", *where, "layer"] = positions.at[n].span
        return spans


def models_pattern(draft: Draft, origin: tree.From, at: Positions | None) -> Pattern | None:
    """Return the pattern of `from math`, `from math, code by …`, `from any of math, code`."""
    spans = Spanned({}, ("recipe",))
    before = len(draft.faults)
    how = method_of(draft, origin.by, spans.inside("by")) if origin.by else None
    named = origin.models
    picks: list[tree.Word | tree.OneOf] = []
    picks += [named] if isinstance(named, tree.OneOf) else named.names
    places: list[Place]
    if isinstance(named, tree.AnyOf):
        places = [("any_of", i) for i in range(len(picks))]
    elif origin.by is not None:
        places = [("merge", k, "model") for k in range(len(picks))]
    else:
        places = [("take", "model")] * len(picks)
        if len(picks) > 1:
            draft.fault("P307", "several models are given, and no method to merge them",
                        named.span, "add 'by' and a method, such as 'by linear()'")  # fmt: skip
    models = tuple(
        model_of(pick, spans.inside(*place)) for pick, place in zip(picks, places, strict=True)
    )
    if len(draft.faults) > before:
        return None
    layers = tuple(p.built(p.LayerOf, model=model, layer=None) for model in models)
    recipe: p.Recipe = p.built(p.Take, take=layers[0])
    if isinstance(named, tree.AnyOf):
        names = tuple(word.text for word in named.names)
        recipe = p.built(p.Subset, any_of=names, layer=None, by=how)
    elif how is not None:
        recipe = p.built(p.Merge, merge=layers, share=None, by=how)
    return Pattern(recipe, (at,) * len(models), spans.spans)


def made_pattern(
    draft: Draft, node: tree.Picked | tree.Merging, *, taker: str = ""
) -> Pattern | None:
    """Return the pattern of `L12 one of (code, chat)`, `merge(L12 code, L14 chat, 0.5) by …`."""
    spans = Spanned({}, ("recipe",))
    if isinstance(node, tree.Picked):
        at = positions_of(draft, node.layers, taker=taker)
        model = model_of(node.model, spans.inside("take", "model"))
        take = p.built(p.Take, take=p.built(p.LayerOf, model=model, layer=None))
        return Pattern(take, (at,), spans.spans) if at is not None else None
    spans.note(node.span)
    before = len(draft.faults)
    lists = [positions_of(draft, source.layers, taker=taker) for source in node.sources]
    layers = []
    for k, source in enumerate(node.sources):
        model = model_of(source.model, spans.inside("merge", k, "model"))
        layers.append(p.built(p.LayerOf, model=model, layer=None))
    how = method_of(draft, node.by, spans.inside("by")) if node.by else None
    share = _share(draft, node, spans)
    positions = tuple(at for at in lists if at is not None)
    if len(draft.faults) == before:
        for other in positions[1:]:
            in_step(draft, positions[0], other)
    if len(draft.faults) > before:
        return None
    recipe = p.built(p.Merge, merge=tuple(layers), share=share, by=how)
    return Pattern(recipe, positions, spans.spans)


def _share(draft: Draft, node: tree.Merging, spans: Spanned) -> p.Value | None:
    if not node.shares:
        return None
    spans.note(node.shares[0].span, "share")
    if len(node.shares) > 1 or len(node.sources) != 2:
        numbers = count_words(len(node.shares), "number")
        named = count_words(len(node.sources), "source")
        draft.fault("P308", f"merge has {numbers} for {named}", node.shares[0].span,
                    "a number is the second source's share; for other merges write "
                    "'by linear(…)' with a number for each source")  # fmt: skip
        return None
    if node.by is not None:
        draft.fault("P308", "merge has a number and a method", node.shares[0].span,
                    "give the number to the method, or leave 'by' out")  # fmt: skip
        return None
    return value_of(draft, node.shares[0])
