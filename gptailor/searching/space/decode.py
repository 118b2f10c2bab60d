"""The closed plan of a genome."""

from collections.abc import Iterable, Iterator
from typing import Any, final

import numpy as np
from pydantic import BaseModel

from gptailor.checkpoint.models import used
from gptailor.lang.words import range_words
from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import may_overlap
from gptailor.plan.layers import own
from gptailor.plan.model_dependencies import needed
from gptailor.plan.sites import compared_models, names_in, values
from gptailor.plan.stage import Stage, at_stage
from gptailor.searching.space.collect import own_of
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space


def decode(space: Space, genome: Genome, *, cut: bool = True) -> p.Plan:
    """Return the closed plan of one genome, without a `search` block, in its shortest form.

    The shortest form leaves out recipes that are the base's own. It leaves out unused models, too.
    Without `cut` nothing is dropped.
    """
    return _Closing(space, genome, cut=cut).plan()


def decode_for(space: Space, genome: Genome, stage: Stage) -> p.Plan:
    """Return the closed plan of one genome with all of its repairs, uncut for that stage."""
    return decode(space, genome, cut=stage != "uncut")


def plan_at_stage(space: Space, genome: Genome, stage: Stage) -> p.Plan:
    """Return the closed plan of one genome as it is evaluated at a stage."""
    return at_stage(decode_for(space, genome, stage), stage)


def expecting(plan: p.Plan, declared: p.Plan) -> p.Plan:
    """Return a closed plan with the expectations of its open plan, and the models named there."""
    expected = declared.model_copy(update={"search": None})
    names = needed(declared, [name for _, name in compared_models(expected)])
    models = {name: declared.models[name] for name in names} | plan.models
    return plan.model_copy(update={"models": models, "expects": declared.expects})


def plan_cut_words(space: Space, genome: Genome, stage: Stage) -> str:
    """Return what one genome's plan leaves out at a stage: `L3..L5, L9 dropped, width 1280`.

    The sizes are those that the space leaves open.
    """
    plan = plan_at_stage(space, genome, stage)
    dropped = range_words([drop.position for drop in plan.drops])
    open_cuts, words = space.plan.cuts, [f"{dropped} dropped"] if dropped else []
    for name, cut in plan.cuts.items():
        sizes = [
            of.numbers[size.named] if isinstance(size, p.Named) else size
            for of, size in ((plan, cut.size), (space.plan, open_cuts[name].size))
        ]
        if sizes[0] != sizes[1]:
            words.append(f"{name} {sizes[0]}")
    return ", ".join(words)


def meaningful(layers: Iterable[p.Layer], below: bool) -> tuple[p.Layer, ...]:
    """Return the layers of a closed plan that change it. The layers are sorted.

    A recipe that is the base's own changes the plan only over a coarser recipe. `below` is whether
    the plan has `others` or a `whole`.
    """
    by_position: dict[int, list[p.Layer]] = {}
    for layer in layers:
        kept = by_position.setdefault(layer.position, [])
        over = below or any(may_overlap(other.part, layer.part) for other in kept)
        if over or layer.recipe != own(layer.position):
            kept.append(layer)
    return tuple(layer for kept in by_position.values() for layer in kept)


def without_unused(plan: p.Plan) -> p.Plan:
    """Return a closed plan without unused models and numbers.

    The base stays, and the models that the plan names. The models that these are made of stay, too.
    """
    needed_models = set(needed(plan, used(plan)))
    models = {name: model for name, model in plan.models.items() if name in needed_models}
    trimmed = plan.model_copy(update={"models": models})
    used_numbers = {name for _, value in values(trimmed) for name in names_in(value)}
    numbers = {name: value for name, value in plan.numbers.items() if name in used_numbers}
    return trimmed.model_copy(update={"numbers": numbers})


@final
class _Closing:
    """The answers of a genome, put into the places of the choices."""

    def __init__(self, space: Space, genome: Genome, *, cut: bool) -> None:
        self.space = space
        self.cut = cut
        self.answers = _answers_of(space, genome)

    def plan(self) -> p.Plan:
        plan: p.Plan = self._closed(self.space.plan, (), own_of(None))
        dropped = self._dropped() if self.cut else set()
        others = tuple(entry for i, entry in enumerate(plan.others) if self._on("others", i))
        layers = (
            layer
            for i, layer in enumerate(plan.layers)
            if layer.position not in dropped and self._on("layers", i)
        )
        heal = plan.heal
        if heal is not None and heal.layers:  # the learning positions that stay
            learning = tuple(position for position in heal.layers if position not in dropped)
            heal = heal.model_copy(update={"layers": learning}) if learning else None
        bare = {where: None for where in p.REST if getattr(plan, where) == own_of(None)}
        closed = {
            **bare,
            "layers": meaningful(layers, bool(others) or plan.whole is not None),
            "others": others,
            "drops": tuple(p.Drop(position=position) for position in sorted(dropped)),
            "drop_any": (),
            "windows": (),
            "repeats": tuple(self._repeats(plan, dropped)),
            "scales": tuple(
                scale
                for i, scale in enumerate(plan.scales)
                if scale.position not in dropped and self._on("scales", i)
            ),
            "bridges": tuple(self._bridges(plan, dropped)),
            "heal": heal,
            "stack": None if plan.stack is None else self._stack(plan.stack),
            "search": None,
            "expects": (),
        }
        return without_unused(plan.model_copy(update=closed))

    def _closed(self, node: Any, at: Place, base: p.Take) -> Any:
        """Return a part of the plan with its choices closed, from the innermost outwards.

        `base` is the base's own layer or tensor at its place.
        """
        if isinstance(node, p.Layer):
            base = own(node.position)
        if isinstance(node, BaseModel):
            fields = ((name, getattr(node, name)) for name in type(node).model_fields)
            update = {name: self._closed(value, (*at, name), base) for name, value in fields}
            if isinstance(node, p.Open):
                update |= {"maybe": False, "tied": None}
            node = node.model_copy(update=update)
        elif isinstance(node, dict):
            node = {key: self._closed(value, (*at, key), base) for key, value in node.items()}
        elif isinstance(node, tuple):
            node = tuple(self._closed(value, (*at, i), base) for i, value in enumerate(node))
        return _closed_by(node, self.answers[at], base) if at in self.answers else node

    def _on(self, *at: str | int) -> bool:
        """Return whether an entry is on: it has no `maybe`, or the answer is yes."""
        return bool(self.answers.get((*at, "maybe"), True))

    def _dropped(self) -> set[int]:
        plan = self.space.plan
        dropped = {drop.position for i, drop in enumerate(plan.drops) if self._on("drops", i)}
        for i, choice in enumerate(plan.drop_any):
            chosen = self.answers["drop_any", i]
            dropped |= {choice.among[k] for k in chosen if self._on("drop_any", i)}
        for i in range(len(plan.windows)):
            first, last = self.answers["windows", i]
            dropped |= set(range(first, last + 1)) if self._on("windows", i) else set()
        if len(dropped) == self.space.layers and self.space.keeper is not None:
            dropped.discard(self.space.keeper)
        return dropped

    def _repeats(self, plan: p.Plan, dropped: set[int]) -> Iterator[p.Repeat]:
        """Yield the repeated blocks, each from its first to its last layer that stays."""
        for i, block in enumerate(plan.repeats):
            if isinstance(block, p.Repeat) and self._on("repeats", i):
                kept = sorted(set(range(block.first, block.last + 1)) - dropped)
                if kept:
                    yield p.Repeat(first=kept[0], last=kept[-1], times=block.times)

    def _bridges(self, plan: p.Plan, dropped: set[int]) -> Iterator[p.Bridge]:
        gaps = {position - 1 for position in dropped} - dropped - {-1}
        for i, bridge in enumerate(plan.bridges):
            places = gaps if bridge.after is None else gaps & {bridge.after}
            if places and self._on("bridges", i):
                yield bridge

    def _stack(self, stack: p.Stack) -> p.Stack:
        declared = self.space.plan.stack
        assert declared is not None, "a closed stack was an open one"
        maybe = [item.maybe for item in declared.items]
        present = [i for i in range(len(maybe)) if self._on("stack", "items", i)]
        room = (len(present) if stack.limit is None else stack.limit) - maybe.count(False)
        kept = []
        for i in present:
            if not maybe[i] or room > 0:
                kept.append(i)
            room -= maybe[i]
        return p.Stack(items=tuple(stack.items[i] for i in kept or [0]))


def _answers_of(space: Space, genome: Genome) -> dict[Place, Any]:
    """Return a genome's answer to each choice, by the choice's place.

    An answer is yes or no, a number, an option, the number of a method, or the chosen numbers.
    """
    bits = np.asarray(genome.bits, bool).tolist()
    picks = np.asarray(genome.picks, np.int32).tolist()
    reals = np.asarray(genome.reals, np.float32).tolist()
    answers: dict[Place, Any] = {}
    for site in space.sites:
        first, *_ = numbers = space.index[site.place]
        match site.value:
            case p.DropAny() | p.Subset():
                answers[site.place] = [k for k, number in enumerate(numbers) if bits[number]]
            case p.Interval():
                answers[site.place] = space.reals[first].value(reals[first])
            case p.OneOfMethods():  # whose numbers may be open
                answers[site.place] = picks[first]
            case value:
                option = bits[first] if value is True else space.picks[first].options[picks[first]]
                answers[site.place] = option
    return answers


def _closed_by(value: Any, answer: Any, base: p.Recipe | None) -> object:
    """Return the value that an answer closes a choice to."""
    if isinstance(value, p.RepeatWindow):
        first, last = answer
        return p.Repeat(first=first, last=last, times=value.times)
    if isinstance(value, p.OneOfMethods):
        return value.one_of[answer]
    if not isinstance(value, p.Subset):
        return answer
    sources = tuple(p.LayerOf(model=value.any_of[k], layer=value.layer) for k in answer)
    if len(sources) < 2:
        assert sources or base is not None, "a stack has no subsets"
        return p.Take(take=sources[0]) if sources else base
    call = value.by
    if isinstance(call, p.MethodCall):
        arguments = {
            name: tuple(v[k] for k in answer) if isinstance(v, tuple) and len(v) > 1 else v
            for name, v in call.arguments.items()
        }
        call = p.MethodCall(name=call.name, arguments=arguments)
    return p.Merge(merge=sources, by=call)
