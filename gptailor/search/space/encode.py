"""From a closed plan to the genome that stands for it."""

from dataclasses import dataclass, field
from typing import final

import jax
import numpy as np

from gptailor.plan.layers import own
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
from gptailor.plan.plan import sources as plan_sources
from gptailor.search.space.collect import own_of, owner
from gptailor.search.space.decode import decode, without_unused
from gptailor.search.space.genes import GenePath
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space, SpaceError
from gptailor.search.space.table import settled


def encode(space: Space, plan: Plan) -> Genome:
    """The canonical genome of a closed plan, as numpy arrays.

    A plan may say more than it has to: the base's own layers, say, or models that it doesn't use.
    Raises SpaceError where no genome stands for it.
    """
    closed = shortest_form(plan)
    defaults = space.table.defaults
    genome = Genome(*(np.array(genes) for genes in defaults))
    _Reading(space, closed, genome).read()
    found = decode(space, genome)
    if found != closed or not _counts(space, genome):
        what = _difference(found, closed) or "drops"
        message = f"the plan is not in the space: its {what} can't be had by closing the choices"
        raise SpaceError(message)
    return Genome(*jax.device_get(settled(space.table, genome)))


def shortest_form(plan: Plan) -> Plan:
    """A closed plan in its shortest form, as `decode` makes it."""
    rest = {w: None if plan.rest(w) == own_of(None) else plan.rest(w) for w in REST}
    layers = tuple(layer for layer in plan.layers if layer.recipe != own(layer.position))
    return without_unused(plan.model_copy(update={**rest, "layers": layers, "search": None}))


def _counts(space: Space, genome: Genome) -> bool:
    """Whether every `drop any` drops as many as it has to."""
    groups = np.bincount(space.table.group + 1, genome.bits, 1 + len(space.table.sizes))
    return np.array_equal(groups[1:], space.table.sizes)


def _difference(found: Plan, wanted: Plan) -> str:
    names = [name for name in Plan.model_fields if getattr(found, name) != getattr(wanted, name)]
    return ", ".join(name for name in names if name != "models" or len(names) == 1)


@final
@dataclass
class _Reading:
    """Fills a genome by walking both plans; what doesn't fit is left, and found by decoding."""

    space: Space
    closed: Plan
    genome: Genome
    dropped: set[int] = field(default_factory=set)

    def read(self) -> None:
        plan = self.space.plan
        self.dropped = {drop.position for drop in self.closed.drops}
        for where in REST:
            if (recipe := plan.rest(where)) is not None:
                self._recipe((where,), recipe, self.closed.rest(where) or own_of(None))
        for g, choice in enumerate(plan.drop_any):
            for position in choice.among:
                self._set(("drop_any", g, position), position in self.dropped)
        gone = {
            owner("drops", i, d) for i, d in enumerate(plan.drops) if d.position in self.dropped
        }
        for i, drop in enumerate(plan.drops):
            if drop.maybe:
                path = owner("drops", i, drop)
                self._set((*path, "maybe"), path in gone)
        self._layers()
        self._scales()
        self._bridges()
        if plan.stack is not None and self.closed.stack is not None:
            self._stack()

    def _layers(self) -> None:
        said = {(layer.position, layer.part): layer.recipe for layer in self.closed.layers}
        for i, layer in enumerate(self.space.plan.layers):
            if layer.position in self.dropped:
                continue
            path = owner("layers", i, layer)
            recipe = said.get((layer.position, layer.part))
            if layer.maybe:
                self._set((*path, "maybe"), recipe is not None)
            if recipe is not None or not layer.maybe:
                self._recipe(path, layer.recipe, recipe or own(layer.position))

    def _scales(self) -> None:
        said = {scale.position: scale.factor for scale in self.closed.scales}
        for i, scale in enumerate(self.space.plan.scales):
            path = owner("scales", i, scale)
            if scale.maybe and scale.position not in self.dropped:
                self._set((*path, "maybe"), scale.position in said)
            if scale.position in said:
                self._value((*path, "factor"), scale.factor, said[scale.position])

    def _bridges(self) -> None:
        said = {bridge.after: bridge for bridge in self.closed.bridges}
        for i, bridge in enumerate(self.space.plan.bridges):
            found = said.get(bridge.after)
            if bridge.maybe:
                self._set(("bridges", i, "maybe"), found is not None)
            if found is not None and bridge.ridge is not None and found.ridge is not None:
                self._value(("bridges", i, "ridge"), bridge.ridge, found.ridge)

    def _stack(self) -> None:
        """Items in order, each to the first that may be it and leaves the others a place."""
        assert self.space.plan.stack is not None
        assert self.closed.stack is not None
        items = list(enumerate(self.space.plan.stack.items))
        wanted = [item.recipe for item in self.closed.stack.items]
        at = 0
        for i, item in items:
            path = owner("items", i, item)
            fits = at < len(wanted) and _fits(item.recipe, wanted[at])
            later = sum(not other.maybe for _, other in items[i + 1 :])
            there = fits and (not item.maybe or len(wanted) - at > later)
            if item.maybe:
                self._set((*path, "maybe"), there)
            if there:
                self._recipe(path, item.recipe, wanted[at])
                at += 1

    # ------------------------------------------------------------------------------------- choices

    def _set(self, path: GenePath, on: bool) -> None:
        self.genome.bits[self.space.index[path]] = on

    def _recipe(self, path: GenePath, recipe: Recipe, closed: Recipe) -> None:
        if isinstance(recipe, Subset):
            self._subset(path, recipe, closed)
        elif isinstance(recipe, Take) and isinstance(closed, Take):
            self._source((*path, "take"), recipe.take, closed.take)
        elif isinstance(recipe, Merge) and isinstance(closed, Merge):
            for k, (mine, theirs) in enumerate(zip(recipe.merge, closed.merge, strict=False)):
                self._source((*path, "merge", k), mine, theirs)
            if recipe.share is not None and closed.share is not None:
                self._value((*path, "share"), recipe.share, closed.share)
            self._by((*path, "by"), recipe.by, closed.by, None)

    def _source(self, path: GenePath, source: LayerOf, closed: LayerOf) -> None:
        if isinstance(source.model, OneOfModels) and closed.model in source.model.one_of:
            number = source.model.one_of.index(str(closed.model))
            self.genome.picks[self.space.index[*path, "model"]] = number

    def _subset(self, path: GenePath, recipe: Subset, closed: Recipe) -> None:
        sources = plan_sources(closed)
        named = {s.model for s in sources if s.layer == recipe.layer}
        if len(sources) == 1 and named == {"base"}:
            named = set()  # none is the base's own too
            if "base" in recipe.any_of and recipe.layer != self._position(path):
                named = {"base"}
        for name in recipe.any_of:
            self._set((*path, "any_of", name), name in named)
        if isinstance(closed, Merge):
            chosen = [k for k, name in enumerate(recipe.any_of) if name in named]
            self._by((*path, "by"), recipe.by, closed.by, chosen)

    def _position(self, path: GenePath) -> int | None:
        """The position of a layer that no `tied` stands before."""
        if path[0] != "layers" or not isinstance(path[1], int):
            return None
        return self.space.plan.layers[path[1]].position

    def _by(
        self, path: GenePath, by: By | None, closed: By | None, chosen: list[int] | None
    ) -> None:
        if by is None or not isinstance(closed, MethodCall):
            return
        if isinstance(by, MethodCall):
            self._call(path, by, closed, chosen)
            return
        for v, call in enumerate(by.one_of):
            if _may_be(call, closed, chosen):
                self.genome.picks[self.space.index[*path, "one_of"]] = v
                self._call((*path, "one_of", v), call, closed, chosen)
                return

    def _call(
        self, path: GenePath, call: MethodCall, closed: MethodCall, chosen: list[int] | None
    ) -> None:
        for name, value in call.arguments.items():
            theirs = closed.arguments.get(name)
            inner = (*path, "arguments", name)
            if isinstance(value, tuple) and isinstance(theirs, tuple):
                numbers = range(len(value)) if chosen is None or len(value) == 1 else chosen
                for k, one in zip(numbers, theirs, strict=False):
                    self._value((*inner, k), value[k], one)
            elif theirs is not None and not isinstance(value, tuple | list):
                assert not isinstance(theirs, tuple)
                self._value(inner, value, theirs)

    def _value(self, path: GenePath, value: Value, closed: Value) -> None:
        assert isinstance(closed, int | float), "an open plan"
        if isinstance(value, Interval):
            number = self.space.index[path]
            real = self.space.reals[number]
            if real.low <= closed <= real.high:
                self.genome.reals[number] = real.share(closed)
        elif isinstance(value, OneOfNumbers) and closed in value.one_of:
            self.genome.picks[self.space.index[path]] = value.one_of.index(closed)


def _may_be(call: MethodCall, closed: MethodCall, chosen: list[int] | None) -> bool:
    """Whether a method with choices may have been closed so."""
    if call.name != closed.name or call.arguments.keys() != closed.arguments.keys():
        return False
    for name, value in call.arguments.items():
        theirs = closed.arguments[name]
        mine = value if isinstance(value, tuple) else (value,)
        if chosen is not None and len(mine) > 1:
            mine = tuple(mine[k] for k in chosen)
        others = theirs if isinstance(theirs, tuple) else (theirs,)
        if len(mine) != len(others) or not all(map(_admits, mine, others)):
            return False
    return True


def _admits(value: Value, closed: Value) -> bool:
    if isinstance(value, Interval):
        low, high = value.interval
        return isinstance(closed, int | float) and low <= closed <= high
    if isinstance(value, OneOfNumbers):
        return closed in value.one_of
    return value == closed


def _fits(recipe: Recipe, closed: Recipe) -> bool:
    """Whether an item of an open stack may have been closed so."""
    if isinstance(recipe, Take):
        return isinstance(closed, Take) and _may_name(recipe.take, closed.take)
    if not (isinstance(recipe, Merge) and isinstance(closed, Merge)):
        return False
    pairs = zip(recipe.merge, closed.merge, strict=False)
    if len(recipe.merge) != len(closed.merge) or not all(_may_name(a, b) for a, b in pairs):
        return False
    if recipe.share is not None and closed.share is not None:
        return _admits(recipe.share, closed.share)
    if recipe.by is None or not isinstance(closed.by, MethodCall):
        return (recipe.by, recipe.share) == (closed.by, closed.share)
    calls = recipe.by.one_of if isinstance(recipe.by, OneOfMethods) else (recipe.by,)
    return any(_may_be(call, closed.by, None) for call in calls)


def _may_name(source: LayerOf, closed: LayerOf) -> bool:
    if source.layer != closed.layer:
        return False
    if isinstance(source.model, OneOfModels):
        return closed.model in source.model.one_of
    return source.model == closed.model
