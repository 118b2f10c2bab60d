"""From a genome to the closed plan that it stands for."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from gptailor.checkpoint.models import used
from gptailor.plan.layers import own
from gptailor.plan.plan import (
    Bridge,
    By,
    Drop,
    Interval,
    Item,
    Layer,
    LayerOf,
    Merge,
    MethodCall,
    Number,
    OneOfMethods,
    OneOfModels,
    OneOfNumbers,
    Open,
    Plan,
    Recipe,
    Scale,
    Stack,
    Subset,
    Take,
    Value,
)
from gptailor.plan.registry import METHODS
from gptailor.search.space.collect import own_of, owner
from gptailor.search.space.genes import GenePath
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space


def decode(space: Space, genome: Genome) -> Plan:
    """The closed plan of one genome, without a `search` block, in its shortest form.

    What is the base's own is not said, nor are models that nothing names any more.
    """
    closing = _Closing(
        space,
        np.asarray(genome.bits, bool),
        np.asarray(genome.picks, np.int32),
        np.asarray(genome.reals, np.float32),
    )
    return closing.plan()


def without_unused(plan: Plan) -> Plan:
    """A closed plan with the models it needs: the base, those it names, and what they are on."""
    needed = used(plan)
    for name in list(needed):
        while (below := plan.models[name].on) is not None and below in plan.models:
            needed.add(name := below)
    models = {name: model for name, model in plan.models.items() if name in needed}
    return plan.model_copy(update={"models": models})


@final
@dataclass(frozen=True, eq=False)
class _Closing:
    space: Space
    bits: Bool[np.ndarray, " b"]
    picks: Int[np.ndarray, " c"]
    reals: Float[np.ndarray, " r"]

    def plan(self) -> Plan:
        plan = self.space.plan
        dropped = self._dropped()
        closed = Plan(
            version=plan.version,
            models=plan.models,
            dtype=plan.dtype,
            embed=self._rest("embed"),
            norm=self._rest("norm"),
            head=self._rest("head"),
            tokenizer=self._rest("tokenizer"),
            layers=self._layers(dropped),
            drops=tuple(Drop(position=position) for position in sorted(dropped)),
            scales=self._scales(dropped),
            bridges=self._bridges(dropped),
            stack=None if plan.stack is None else self._stack(plan.stack),
        )
        closed = without_unused(closed)
        return closed if plan.origin is None else closed.read_from(plan.origin)

    def _dropped(self) -> set[int]:
        plan = self.space.plan
        found = {
            drop.position
            for i, drop in enumerate(plan.drops)
            if self._on(owner("drops", i, drop), drop)
        }
        for g, choice in enumerate(plan.drop_any):
            found |= {p for p in choice.among if self.bits[self._number("drop_any", g, p)]}
        if len(found) == self.space.layers and self.space.keeper is not None:
            found.discard(self.space.keeper)
        return found

    def _rest(self, where: str) -> Recipe | None:
        recipe = self.space.plan.rest(where)
        closed = None if recipe is None else self._recipe((where,), recipe, own_of(None))
        return None if closed == own_of(None) else closed

    def _layers(self, dropped: set[int]) -> tuple[Layer, ...]:
        found = []
        for i, layer in enumerate(self.space.plan.layers):
            path, base = owner("layers", i, layer), own(layer.position)
            if layer.position in dropped or not self._on(path, layer):
                continue
            recipe = self._recipe(path, layer.recipe, base)
            if recipe != base:
                found.append(Layer(position=layer.position, part=layer.part, recipe=recipe))
        return tuple(found)

    def _scales(self, dropped: set[int]) -> tuple[Scale, ...]:
        found = []
        for i, scale in enumerate(self.space.plan.scales):
            path = owner("scales", i, scale)
            if scale.position not in dropped and self._on(path, scale):
                factor = self._value((*path, "factor"), scale.factor)
                found.append(Scale(position=scale.position, factor=factor))
        return tuple(found)

    def _bridges(self, dropped: set[int]) -> tuple[Bridge, ...]:
        found = []
        gaps = {position - 1 for position in dropped} - dropped - {-1}
        for i, bridge in enumerate(self.space.plan.bridges):
            there = gaps if bridge.after is None else gaps & {bridge.after}
            if there and self._on(("bridges", i), bridge):
                ridge = bridge.ridge
                if ridge is not None:
                    ridge = self._value(("bridges", i, "ridge"), ridge)
                found.append(bridge.model_copy(update={"maybe": False, "ridge": ridge}))
        return tuple(found)

    def _stack(self, stack: Stack) -> Stack:
        entries = list(enumerate(stack.items))
        there = [i for i, item in entries if self._on(owner("items", i, item), item)]
        left = len(there) if stack.limit is None else stack.limit
        left -= sum(not item.maybe for item in stack.items)
        kept = []
        for i in there:
            maybe = stack.items[i].maybe
            if not maybe or left > 0:
                kept.append(i)
            left -= maybe
        items = [
            Item(recipe=self._recipe(owner("items", i, item), item.recipe, None))
            for i, item in entries
            if i in (kept or [0])
        ]
        return Stack(items=tuple(items))

    # ------------------------------------------------------------------------------------- choices

    def _number(self, *path: str | int) -> int:
        return self.space.index[path]

    def _on(self, path: GenePath, entry: Open) -> bool:
        return not entry.maybe or bool(self.bits[self._number(*path, "maybe")])

    def _recipe(self, path: GenePath, recipe: Recipe, base: Recipe | None) -> Recipe:
        if isinstance(recipe, Take):
            return Take(take=self._source((*path, "take"), recipe.take))
        if isinstance(recipe, Subset):
            return self._subset(path, recipe, base)
        sources = tuple(self._source((*path, "merge", k), s) for k, s in enumerate(recipe.merge))
        share = recipe.share
        return Merge(
            merge=sources,
            share=None if share is None else self._value((*path, "share"), share),
            by=None if recipe.by is None else self._by((*path, "by"), recipe.by, None),
        )

    def _source(self, path: GenePath, source: LayerOf) -> LayerOf:
        if not isinstance(source.model, OneOfModels):
            return source
        name = source.model.one_of[self.picks[self._number(*path, "model")]]
        return LayerOf(model=name, layer=source.layer)

    def _subset(self, path: GenePath, recipe: Subset, base: Recipe | None) -> Recipe:
        chosen = [
            k
            for k, name in enumerate(recipe.any_of)
            if self.bits[self._number(*path, "any_of", name)]
        ]
        if not chosen:
            assert base is not None, "a stack has no subsets"
            return base
        sources = tuple(LayerOf(model=recipe.any_of[k], layer=recipe.layer) for k in chosen)
        if len(sources) == 1:
            return Take(take=sources[0])
        by = None if recipe.by is None else self._by((*path, "by"), recipe.by, chosen)
        return Merge(merge=sources, by=by)

    def _by(self, path: GenePath, by: By, chosen: list[int] | None) -> MethodCall:
        if isinstance(by, OneOfMethods):
            v = int(self.picks[self._number(*path, "one_of")])
            return self._call((*path, "one_of", v), by.one_of[v], chosen)
        return self._call(path, by, chosen)

    def _call(self, path: GenePath, call: MethodCall, chosen: list[int] | None) -> MethodCall:
        found: dict[str, Value | tuple[Value, ...]] = {}
        for name, value in call.arguments.items():
            inner = (*path, "arguments", name)
            if not isinstance(value, tuple):
                found[name] = self._value(inner, value)
                continue
            variadic = METHODS[call.name].variadic is not None and len(value) > 1
            found[name] = tuple(
                self._value((*inner, k), one)
                for k, one in enumerate(value)
                if chosen is None or not variadic or k in chosen
            )
        return MethodCall(name=call.name, arguments=found)

    def _value(self, path: GenePath, value: Value) -> Number:
        if isinstance(value, Interval):
            number = self._number(*path)
            return self.space.reals[number].value(float(self.reals[number]))
        if isinstance(value, OneOfNumbers):
            return value.one_of[int(self.picks[self._number(*path)])]
        return value
