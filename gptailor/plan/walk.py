"""Walks over a plan that the rules share: what stands where, and faults joined over ranges."""

from collections.abc import Iterator

from gptailor.plan.faults import Place
from gptailor.plan.plan import (
    REST,
    By,
    Interval,
    LayerOf,
    Merge,
    MethodCall,
    OneOfMethods,
    OneOfModels,
    OneOfNumbers,
    Plan,
    Recipe,
    Subset,
    Take,
    Value,
)


def recipes(plan: Plan) -> Iterator[tuple[Place, Recipe]]:
    """Every recipe of a plan and its place."""
    for where in REST:
        if (recipe := plan.rest(where)) is not None:
            yield (where,), recipe
    yield from layer_recipes(plan)


def layer_recipes(plan: Plan) -> Iterator[tuple[Place, Recipe]]:
    """Every recipe of a layer and its place."""
    for i, layer in enumerate(plan.layers):
        yield ("layers", i, "recipe"), layer.recipe
    for i, item in enumerate(plan.stack.items if plan.stack else ()):
        yield ("stack", "items", i, "recipe"), item.recipe


def layers_of(recipe: Recipe) -> Iterator[tuple[Place, LayerOf]]:
    """The layers that a recipe names, a choice of models in one; not those of a subset."""
    if isinstance(recipe, Take):
        yield ("take",), recipe.take
    elif isinstance(recipe, Merge):
        for k, source in enumerate(recipe.merge):
            yield ("merge", k), source


def named_models(recipe: Recipe) -> Iterator[tuple[Place, str, int | None]]:
    """Each model that a recipe names: its place in the recipe, its name, the layer taken."""
    if isinstance(recipe, Subset):
        for i, name in enumerate(recipe.any_of):
            yield ("any_of", i), name, recipe.layer
    for at, source in layers_of(recipe):
        if isinstance(source.model, str):
            yield (*at, "model"), source.model, source.layer
        else:
            for i, name in enumerate(source.model.one_of):
                yield (*at, "model", "one_of", i), name, source.layer


def calls(recipe: Recipe) -> Iterator[tuple[Place, MethodCall]]:
    """Each method that a recipe may use."""
    by = None if isinstance(recipe, Take) else recipe.by
    if isinstance(by, MethodCall):
        yield ("by",), by
    elif isinstance(by, OneOfMethods):
        for i, call in enumerate(by.one_of):
            yield ("by", "one_of", i), call


def call_values(call: MethodCall) -> Iterator[tuple[Place, str, Value]]:
    """Each number of a method: its place, its parameter's name, the number."""
    for name, value in call.arguments.items():
        if isinstance(value, tuple):
            for i, one in enumerate(value):
                yield ("arguments", name, i), name, one
        else:
            yield ("arguments", name), name, value


def values(plan: Plan) -> Iterator[tuple[Place, Value]]:
    """Every number of a plan that may be a choice."""
    for at, recipe in recipes(plan):
        if isinstance(recipe, Merge) and recipe.share is not None:
            yield (*at, "share"), recipe.share
        for inner, call in calls(recipe):
            yield from ((at + inner + v, value) for v, _, value in call_values(call))
    for i, scale in enumerate(plan.scales):
        yield ("scales", i, "factor"), scale.factor
    for i, bridge in enumerate(plan.bridges):
        for name, value in (("tokens", bridge.tokens), ("ridge", bridge.ridge)):
            if value is not None:
                yield ("bridges", i, name), value


def numbers(value: Value) -> tuple[int | float, ...]:
    """The numbers that bound a value: itself, its ends, its options."""
    if isinstance(value, Interval):
        return value.interval
    return value.one_of if isinstance(value, OneOfNumbers) else (value,)


def is_open(value: Value | By | str | OneOfModels | None) -> bool:
    """Whether something is a choice, or a method with a choice in it."""
    if isinstance(value, MethodCall):
        return any(is_open(v) for _, _, v in call_values(value))
    return isinstance(value, Interval | OneOfNumbers | OneOfMethods | OneOfModels)


def choices(recipe: Recipe) -> int:
    """How many choices a recipe leaves open."""
    if isinstance(recipe, Take):
        return int(is_open(recipe.take.model))
    count = sum(is_open(v) for _, call in calls(recipe) for _, _, v in call_values(call))
    count += isinstance(recipe.by, OneOfMethods)
    if isinstance(recipe, Subset):
        return count + 1
    return count + is_open(recipe.share) + sum(is_open(s.model) for s in recipe.merge)


def open_choices(plan: Plan) -> int:
    """How many choices a plan leaves open; a tied statement's count once."""
    seen: set[tuple[str, int]] = set()
    count = len(plan.drop_any)
    stack = plan.stack.items if plan.stack else ()
    for name in ("embed", "norm", "head", "tokenizer"):
        recipe = plan.rest(name)
        count += choices(recipe) if recipe is not None else 0
    for name, entries in (("layers", plan.layers), ("drops", plan.drops),
                          ("scales", plan.scales), ("items", stack)):  # fmt: skip
        for entry in entries:
            if entry.tied is not None and (name, entry.tied) in seen:
                continue
            if entry.tied is not None:
                seen.add((name, entry.tied))
            count += entry.maybe
            recipe = getattr(entry, "recipe", None)
            count += choices(recipe) if recipe is not None else 0
            count += not isinstance(getattr(entry, "factor", 1), int | float)
    for bridge in plan.bridges:
        count += bridge.maybe + sum(
            isinstance(v, Interval | OneOfNumbers) for v in (bridge.tokens, bridge.ridge)
        )
    return count
