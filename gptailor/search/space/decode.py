"""From a genome to the closed plan that it stands for."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
from pydantic import BaseModel

from gptailor.checkpoint.models import used
from gptailor.plan.faults import Place
from gptailor.plan.layers import own
from gptailor.plan.plan import (
    REST,
    Bridge,
    Drop,
    DropAny,
    Interval,
    Item,
    Layer,
    LayerOf,
    Merge,
    MethodCall,
    OneOfMethods,
    OneOfModels,
    OneOfNumbers,
    Plan,
    Recipe,
    Scale,
    Stack,
    Subset,
    Take,
    Value,
)
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space, own_of

Answer: TypeAlias = bool | int | float | list[int]
"""What closes a choice: yes or no, an option's number, a real, or the numbers of those chosen."""


def decode(space: Space, genome: Genome) -> Plan:
    """The closed plan of one genome, without a `search` block, in its shortest form.

    What is the base's own is not said, nor are models that nothing names any more.
    """
    return _Closing(space, genome).plan()


def without_unused(plan: Plan) -> Plan:
    """A closed plan with the models it needs: the base, those it names, and what they are on."""
    needed = used(plan)
    for name in list(needed):
        while (below := plan.models[name].on) is not None and below in plan.models:
            needed.add(name := below)
    models = {name: model for name, model in plan.models.items() if name in needed}
    return plan.model_copy(update={"models": models})


def changed(node: Any, place: Place, change: Callable[[Any], object]) -> Any:
    """The same data with something else in a place."""
    if not place:
        return change(node)
    step, *rest = place
    if isinstance(node, BaseModel):
        inner = changed(getattr(node, str(step)), tuple(rest), change)
        return node.model_copy(update={str(step): inner})
    inner = changed(node[step], tuple(rest), change)
    if isinstance(node, dict):
        return {**node, step: inner}
    return (*node[: int(step)], inner, *node[int(step) + 1 :])


@final
class _Closing:
    """Puts an answer into the place of each choice."""

    def __init__(self, space: Space, genome: Genome) -> None:
        self.space = space
        self.answers = answers(space, genome)

    def plan(self) -> Plan:
        plan = self.space.plan
        dropped = self._dropped()
        closed = {
            **{where: self._rest(where) for where in REST},
            "layers": self._layers(dropped),
            "drops": tuple(Drop(position=position) for position in sorted(dropped)),
            "drop_any": (),
            "scales": self._scales(dropped),
            "bridges": self._bridges(dropped),
            "stack": None if plan.stack is None else self._stack(plan.stack),
            "search": None,
        }
        return without_unused(plan.model_copy(update=closed))

    def _on(self, *at: str | int) -> bool:
        """Whether an entry is there: it has no `maybe`, or it is answered with yes."""
        return bool(self.answers.get((*at, "maybe"), True))

    def _dropped(self) -> set[int]:
        plan = self.space.plan
        found = {drop.position for i, drop in enumerate(plan.drops) if self._on("drops", i)}
        for g, choice in enumerate(plan.drop_any):
            chosen = self.answers["drop_any", g]
            assert isinstance(chosen, list)
            found |= {choice.among[k] for k in chosen}
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
            if layer.position in dropped or not self._on("layers", i):
                continue
            base = own(layer.position)
            recipe = self._recipe(("layers", i, "recipe"), layer.recipe, base)
            if recipe != base:
                found.append(Layer(position=layer.position, part=layer.part, recipe=recipe))
        return tuple(found)

    def _scales(self, dropped: set[int]) -> tuple[Scale, ...]:
        return tuple(
            Scale(position=scale.position, factor=self._number(scale.factor, "scales", i, "factor"))
            for i, scale in enumerate(self.space.plan.scales)
            if scale.position not in dropped and self._on("scales", i)
        )

    def _bridges(self, dropped: set[int]) -> tuple[Bridge, ...]:
        found = []
        gaps = {position - 1 for position in dropped} - dropped - {-1}
        for i, bridge in enumerate(self.space.plan.bridges):
            there = gaps if bridge.after is None else gaps & {bridge.after}
            if there and self._on("bridges", i):
                ridge = self._number(bridge.ridge, "bridges", i, "ridge")
                found.append(bridge.model_copy(update={"maybe": False, "ridge": ridge}))
        return tuple(found)

    def _stack(self, stack: Stack) -> Stack:
        there = [i for i in range(len(stack.items)) if self._on("stack", "items", i)]
        left = len(there) if stack.limit is None else stack.limit
        left -= sum(not item.maybe for item in stack.items)
        kept = []
        for i in there:
            maybe = stack.items[i].maybe
            if not maybe or left > 0:
                kept.append(i)
            left -= maybe
        recipes = [
            self._recipe(("stack", "items", i, "recipe"), stack.items[i].recipe, None)
            for i in kept or [0]
        ]
        return Stack(items=tuple(Item(recipe=recipe) for recipe in recipes))

    # ------------------------------------------------------------------------------------- choices

    def _number(self, value: Value | None, *place: str | int) -> Any:
        return closed_by(value, self.answers.get(place))

    def _recipe(self, at: Place, recipe: Recipe, base: Recipe | None) -> Recipe:
        """A recipe with the choices in it closed, from the innermost outwards."""
        for site in self.space.inside.get(at, ()):
            answer = self.answers[site.place]
            if isinstance(recipe, Subset) and isinstance(answer, list):
                return _merged(recipe, answer, base)
            inner = site.place[len(at) :]
            recipe = changed(recipe, inner, partial(closed_by, answer=answer))
        return recipe


def answers(space: Space, genome: Genome) -> dict[Place, Answer]:
    """What a genome answers to each choice, by the choice's place."""
    bits = np.asarray(genome.bits, bool).tolist()
    picks = np.asarray(genome.picks, np.int32).tolist()
    reals = np.asarray(genome.reals, np.float32).tolist()
    found: dict[Place, Answer] = {}
    for site in space.sites:
        first, *_ = numbers = space.index[site.place]
        if isinstance(site.value, DropAny | Subset):
            found[site.place] = [k for k, number in enumerate(numbers) if bits[number]]
        elif isinstance(site.value, Interval):
            found[site.place] = space.reals[first].value(reals[first])
        else:
            found[site.place] = bits[first] if site.value is True else picks[first]
    return found


def closed_by(value: Any, answer: Answer | None) -> Any:
    """What a choice comes to; anything else is what it was."""
    if isinstance(value, OneOfModels | OneOfNumbers | OneOfMethods):
        assert isinstance(answer, int)
        return value.one_of[answer]
    return answer if isinstance(value, Interval) else value


def _merged(subset: Subset, chosen: Sequence[int], base: Recipe | None) -> Recipe:
    """What a subset comes to, with those numbers of its method that are the chosen members'."""
    if not chosen:
        assert base is not None, "a stack has no subsets"
        return base
    sources = tuple(LayerOf(model=subset.any_of[k], layer=subset.layer) for k in chosen)
    if len(sources) == 1:
        return Take(take=sources[0])
    call = subset.by
    if isinstance(call, MethodCall):
        arguments = {
            name: tuple(v[k] for k in chosen) if isinstance(v, tuple) and len(v) > 1 else v
            for name, v in call.arguments.items()
        }
        call = MethodCall(name=call.name, arguments=arguments)
    return Merge(merge=sources, by=call)
