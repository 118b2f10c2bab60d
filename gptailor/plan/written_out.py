"""Plans written out for a number of layers: no others, whole, curves or names left.

Programs, the rules against models and all that people are shown use plans that are written out.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Any

from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.numbers import over_positions
from gptailor.plan.sites import (
    entries,
    named_models,
    placed,
    recipe_sites,
    revalued,
    values,
)


def written_out(plan: p.Plan, count: int, tied: Collection[str] = ()) -> p.Plan:
    """Return the plan with an entry for each position and a number for each name and curve.

    Open values stay: a name of a choice, and a curve through one. `tied` are the models with one
    tensor for embedding and head. A plan that has nothing to write out is itself.
    """
    plan = spread(plan, count, tied, gone=bool(plan.bridges) or plan.heal is not None)
    if not any(isinstance(value, p.Named | p.Curve) for _, value in values(plan)):
        return plan
    numbers = {n: v for n, v in plan.numbers.items() if isinstance(v, int | float)}

    def settled(entry: Any, field: str, at: int | None = 0) -> Any:
        """Return the entry with the number of its field, or all numbers of its recipe."""
        value = revalued(getattr(entry, field), partial(_settled, numbers=numbers, at=at))
        return entry.model_copy(update={field: value})

    stack = plan.stack
    items = [settled(item, "recipe", None) for item in stack.items] if stack is not None else []
    update = {
        **{
            where: revalued(recipe, partial(_settled, numbers=numbers, at=0))
            for where in p.REST
            if (recipe := plan.rest(where)) is not None
        },
        "layers": tuple(settled(layer, "recipe", layer.position) for layer in plan.layers),
        "scales": tuple(settled(scale, "factor", scale.position) for scale in plan.scales),
        "bridges": tuple(settled(bridge, "ridge") for bridge in plan.bridges),
        **{name: settled(cut, "size") for name, cut in plan.cuts.items()},
        "stack": stack and stack.model_copy(update={"items": tuple(items)}),
    }
    result = plan.model_copy(update=update)
    return result if plan.origin is None else result.read_from(plan.origin)


# ----------------------------------------------------------------------------------------- numbers


def _settled(value: p.Value, numbers: Mapping[str, p.Number], at: int | None) -> p.Value:
    """Return the number at a position; an item of a stack (None) has it by the curve itself."""
    if isinstance(value, p.Named):
        return numbers.get(value.named, value)
    if not isinstance(value, p.Curve) or value.over is None:
        return value
    knots = tuple(numbers.get(k.named, k) if isinstance(k, p.Named) else k for k in value.curve)
    fixed = [knot for knot in knots if isinstance(knot, int | float)]
    if len(fixed) < len(knots):
        return value
    first, last = value.over
    if at is None:
        return curve_at(fixed, first, 0, last)
    return curve_at(fixed, at, first, last)


def curve_at(knots: Sequence[p.Number], position: float, first: int, last: int) -> float:
    """Return the number at a position of a curve from the first to the last, both included.

    The knots are spread evenly; between two of them it is on the straight line. A curve over one
    position has its last knot there. In float64, as mergekit has it.
    """
    share = (position - first) / (last - first) if last > first else 1.0
    scaled = share * (len(knots) - 1)
    low = int(scaled)
    high = min(len(knots) - 1, low + 1)
    before, after = float(knots[low]), float(knots[high])
    number = (1 - (scaled - low)) * before + (scaled - low) * after
    return min(max(number, min(before, after)), max(before, after))


# -------------------------------------------------------------------------------- others and whole


def spread(
    plan: p.Plan,
    count: int,
    tied: Collection[str] = (),
    *,
    gone: bool = False,
    plain: bool = False,
) -> p.Plan:
    """Return the plan with `others` and `whole` as layers, embedding, norm and head.

    A layer of a smaller level wins at its position, then one of a finer part; below a `maybe` are
    the layers that hold where it isn't taken. Layers without effect are left out. Positions that a
    fixed drop takes away have layers if `gone`, as in the plan with nothing dropped. A `plain` plan
    has no levels, as in a text (see P512).
    """
    if not plan.others and plan.whole is None:
        return plan
    located = _located(plan, count, gone=gone, plain=plain)
    recipes = _rest_of_whole(plan, tied)
    update = {
        "layers": tuple(layer for layer, _ in located),
        "others": (),
        "whole": None,
        **recipes,
    }
    result = plan.model_copy(update=update)
    if plan.origin is None:
        return result
    return result.read_from(replace(plan.origin, places=_declared_places(located, recipes)))


_Located = tuple[p.Layer, Place]
"""A layer, and its place in the plan, or the place of its `others` or `whole`."""


def _located(
    plan: p.Plan, count: int, *, gone: bool = False, plain: bool = False
) -> list[_Located]:
    """Return the layers of `_layers` in their normal order; dropped layers too if `gone`."""
    dropped = frozenset(drop.position for drop in plan.drops if not drop.maybe and not gone)
    return sorted(_layers(plan, count, dropped, plain), key=lambda pair: p.normal_order(pair[0]))


def _layers(plan: p.Plan, count: int, dropped: Collection[int], plain: bool) -> Iterator[_Located]:
    """Yield the layers of the plan, `others` and `whole`, each with its place in the plan."""
    own: dict[int, list[_Located]] = {}
    for i, layer in enumerate(plan.layers):
        own.setdefault(layer.position, []).append((layer, ("layers", i)))
    levels = _levels(plan)
    for position in range(count):
        located = own.pop(position, [])
        for level in levels if position not in dropped else ():
            solid = {layer.part for layer, _ in located if not layer.maybe}
            more = [
                (_at_position(below, position, count, plain), at)
                for below, at in level
                if not covers(solid, below.part)
            ]
            located = [*(_in_parts(located, more) if plain else located), *more]
        yield from located
    for beyond in own.values():
        yield from beyond


def _levels(plan: p.Plan) -> list[list[tuple[p.LayerBelow, Place]]]:
    """Return `others`, then `whole`, as layers at position 0.

    Their groups are numbered after the layers' groups.
    """
    groups = 1 + max((layer.tied or 0 for layer in plan.layers), default=0)
    levels: list[list[tuple[p.LayerBelow, Place]]] = [[], []]
    for at, entry in entries(plan):
        if isinstance(entry, p.Others | p.Whole):
            level = 1 if isinstance(entry, p.Others) else 2
            group = None if entry.tied is None else groups + sum(map(len, levels))
            fields = {"position": 0, **dict(entry), "tied": group, "level": level}
            levels[level - 1].append((p.built(p.LayerBelow, **fields), at))
    return levels


def _at_position(below: p.LayerBelow, position: int, count: int, plain: bool) -> p.Layer:
    """Return a layer of a level at a position, without its level if `plain`."""
    recipe = placed(below.recipe, position)
    recipe = revalued(recipe, lambda value: over_positions(value, 0, count - 1))
    fields = {**dict(below), "position": position, "recipe": recipe}
    kind: type[p.Layer] = p.Layer if plain else p.LayerBelow
    return p.built(kind, **{name: fields[name] for name in kind.model_fields})


def covers(solid: AbstractSet[str | None], part: str | None) -> bool:
    """Return whether the certain recipes of a position leave nothing of a part to recipes below."""
    if solid & {None, part} or {*BRANCHES} <= solid:
        return True
    return part is not None and part.partition(".")[0] in solid


def _in_parts(above: Sequence[_Located], below: Sequence[_Located]) -> Iterator[_Located]:
    """Yield the layers, a whole layer above recipes of parts split into its branches.

    A whole layer that may be taken wins over the parts below it.
    """
    finer = any(layer.part is not None for layer, _ in below)
    for layer, at in above:
        if finer and layer.part is None:
            yield from ((layer.model_copy(update={"part": part}), at) for part in BRANCHES)
        else:
            yield layer, at


def _rest_of_whole(plan: p.Plan, tied: Collection[str]) -> dict[str, p.Recipe]:
    """Return the recipes of `whole` for embedding, norm and head that the plan doesn't name.

    In a tied model, embedding and head are one tensor: naming one of them decides both. Where all
    sources are tied too, they stay one.
    """
    if plan.whole is None:
        return {}
    recipe = plan.whole.recipe
    wanted = ["norm", "embed", "head"]
    if "base" in tied and (plan.embed is not None or plan.head is not None):
        wanted = ["norm"]
    elif "base" in tied and all(name in tied for _, name, _ in named_models(recipe)):
        wanted = ["norm", "embed"]
    return {
        where: revalued(recipe, partial(_knot, number=0 if where == "embed" else -1))
        for where in wanted
        if plan.rest(where) is None
    }


def _knot(value: p.Value, number: int) -> p.Value:
    """Return the first or last knot of a curve, for embedding, final norm or head."""
    return value.curve[number] if isinstance(value, p.Curve) and value.curve else value


def searched(plan: p.Plan, count: int, tied: Collection[str] = ()) -> p.Plan:
    """Return an open plan with a layer for each choice that `others` and `whole` leave open."""
    return _spread_alike(plan, count, tied, plan)


def untied_choices(plan: p.Plan) -> tuple[bool, bool]:
    """Return whether `whole`, and whether `others` leave a choice to each position."""
    of_whole = plan.whole is not None and _leaves_choices(plan.whole)
    return of_whole, of_whole or any(map(_leaves_choices, plan.others))


def _leaves_choices(entry: p.Others | p.Whole) -> bool:
    open_sites = (site.open for site in recipe_sites(entry.recipe))
    return entry.tied is None and (entry.maybe or any(open_sites))


def idle_others(plan: p.Plan, count: int) -> Iterator[Place]:
    """Yield the places of each `others` without a position."""
    used = {at for _, at in _located(plan, count)} if plan.others else set()
    yield from (("others", i) for i in range(len(plan.others)) if ("others", i) not in used)


def declared_places(plan: p.Plan, count: int) -> Mapping[Place, Place]:
    """Return the declared places of layers and the rest that `others` and `whole` give."""
    if not plan.others and plan.whole is None:
        return {}
    located = _located(plan, count, gone=bool(plan.bridges) or plan.heal is not None)
    rest = [where for where in p.REST if plan.whole is not None and plan.rest(where) is None]
    return _declared_places(located, rest)


def _declared_places(located: Sequence[_Located], rest: Iterable[str]) -> dict[Place, Place]:
    layers: dict[Place, Place] = {("layers", i): at for i, (_, at) in enumerate(located)}
    return layers | {(where,): ("whole", "recipe") for where in rest}


def _spread_alike(declared: p.Plan, layers: int, tied: Collection[str], closed: p.Plan) -> p.Plan:
    """Return a closed plan with layers for the choices that the open one leaves to positions.

    Where `whole` leaves one, `others` are layers too, since they win over it.
    """
    of_whole, of_others = untied_choices(declared)
    if of_whole:
        return spread(closed, layers, tied, plain=True)
    if of_others:
        result = spread(closed.model_copy(update={"whole": None}), layers, tied, plain=True)
        return result.model_copy(update={"whole": closed.whole})
    return closed
