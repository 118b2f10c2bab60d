"""The closed plan of a genome."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from pydantic import BaseModel

from gptailor.checkpoint.models import used
from gptailor.lang.words import range_words
from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.model_dependencies import needed
from gptailor.plan.resolved import own
from gptailor.plan.sites import compared_models, entries, names_in, values
from gptailor.plan.stage import Stage, at_stage
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import closing


def decode(space: Space, genome: Genome, *, cut: bool = True) -> p.Plan:
    """Return the closed plan of one genome, without a `search` block, in its shortest form.

    The shortest form leaves out recipes that are the base's own. It leaves out unused models, too.
    Without `cut` nothing is dropped.
    """
    truths = closing(space.table, genome)
    dropped = set(np.flatnonzero(truths[-space.layers :]).tolist()) if cut else set[int]()
    gone = {
        at
        for (at, entry), stays in zip(entries(space.plan), truths, strict=False)
        if not stays or getattr(entry, "position", None) in dropped
    }
    plan: p.Plan = _Closing(space, genome, gone).closed(space.plan, (), own(None))
    heal = plan.heal
    if heal is not None and heal.layers:  # the learning positions that stay
        learning = tuple(position for position in heal.layers if position not in dropped)
        heal = heal.model_copy(update={"layers": learning}) if learning else None
    closed = {
        **{where: None for where in p.REST if getattr(plan, where) == own(None)},
        "drops": tuple(p.Drop(position=position) for position in sorted(dropped)),
        "drop_any": (),
        "windows": (),
        "repeats": tuple(_repeats(plan, dropped)),
        "bridges": plan.bridges if cut else (),
        "heal": heal,
        "stack": None if plan.stack is None else p.Stack(items=plan.stack.items),
        "search": None,
        "expects": (),
        "gguf": (),
    }
    return without_unused(plan.model_copy(update=closed))


def _repeats(plan: p.Plan, dropped: set[int]) -> Iterator[p.Repeat]:
    """Yield the repeated blocks, each from its first to its last layer that stays."""
    for block in plan.repeats:
        kept = sorted(set(block.positions) - dropped)
        if kept:
            yield p.Repeat(first=kept[0], last=kept[-1], times=block.times)


def decode_for(space: Space, genome: Genome, stage: Stage) -> p.Plan:
    """Return the closed plan of one genome with all of its repairs, uncut for that stage."""
    return decode(space, genome, cut=stage != "uncut")


def plan_at_stage(space: Space, genome: Genome, stage: Stage) -> p.Plan:
    """Return the closed plan of one genome for its evaluation at a stage."""
    return at_stage(decode_for(space, genome, stage), stage)


def expecting(plan: p.Plan, declared: p.Plan) -> p.Plan:
    """Return a closed plan with its open plan's expectations, their models, and GGUF files."""
    expected = declared.model_copy(update={"search": None})
    names = needed(declared, [name for _, name in compared_models(expected)])
    models = {name: declared.models[name] for name in names} | plan.models
    stated = {"expects": declared.expects, "gguf": declared.gguf}
    return plan.model_copy(update={"models": models, **stated})


def plan_cut_words(space: Space, genome: Genome, stage: Stage) -> str:
    """Return one genome's cuts at a stage in words: `L3..L5, L9 dropped, width 1280`.

    The sizes are the sizes that the space leaves open.
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


def without_unused(plan: p.Plan) -> p.Plan:
    """Return a closed plan without unused models and numbers.

    The base stays, and the models that the plan names. The models that these are made of stay, too.
    """
    needed_models = set(needed(plan, used(plan)))
    models = {name: model for name, model in plan.models.items() if name in needed_models}
    trimmed = plan.model_copy(update={"models": models})
    if not plan.numbers:
        return trimmed
    used_numbers = {name for _, value in values(trimmed) for name in names_in(value)}
    numbers = {name: value for name, value in plan.numbers.items() if name in used_numbers}
    return trimmed.model_copy(update={"numbers": numbers})


@final
@dataclass(frozen=True)
class _Closing:
    """The answers of a genome, put into the places of the choices.

    `gone` are the places of entries that the closed plan doesn't have.
    """

    space: Space
    genome: Genome
    gone: Collection[Place]

    def closed(self, node: Any, at: Place, base: p.Take) -> Any:
        """Return a part of the plan with its choices closed, from the innermost outwards.

        `base` is the base's own layer or tensor at its place.
        """
        if at not in self.space.changing:
            return node
        if isinstance(node, p.Layer):
            base = own(node.position)
        if isinstance(node, BaseModel):
            fields = ((name, getattr(node, name)) for name in type(node).model_fields)
            update = {name: self.closed(value, (*at, name), base) for name, value in fields}
            if isinstance(node, p.Open):
                update |= {"maybe": False, "tied": None}
            node = node.model_copy(update=update)
        elif isinstance(node, dict):
            node = {key: self.closed(value, (*at, key), base) for key, value in node.items()}
        elif isinstance(node, tuple):
            parts = (((*at, i), part) for i, part in enumerate(node))
            node = tuple(self.closed(part, of, base) for of, part in parts if of not in self.gone)
        numbers = self.space.index.get(at)
        return node if numbers is None else self._answer(node, numbers, base)

    def _answer(self, value: Any, numbers: Sequence[int], base: p.Take) -> object:
        """Return the value that a choice with these genes is closed to."""
        bits, picks, reals = self.genome
        match value:
            case p.DropAny() | p.DropWindow() | True:
                return value  # it is closed by the entries and positions that stay
            case p.Interval():
                return self.space.reals[numbers[0]].value(reals[numbers[0]])
            case p.OneOfMethods():
                return value.one_of[picks[numbers[0]]]  # with closed numbers
            case p.Subset():
                return _merged(value, [k for k, number in enumerate(numbers) if bits[number]], base)
        option = self.space.picks[numbers[0]].options[picks[numbers[0]]]
        if isinstance(value, p.RepeatWindow):
            return p.Repeat(first=option[0], last=option[1], times=value.times)
        return option


def _merged(subset: p.Subset, chosen: Sequence[int], base: p.Take) -> p.Recipe:
    """Return the recipe of the chosen members of a subset."""
    sources = tuple(p.LayerOf(model=subset.any_of[k], layer=subset.layer) for k in chosen)
    if len(sources) < 2:
        return p.Take(take=sources[0]) if sources else base
    call = subset.by
    if isinstance(call, p.MethodCall):
        arguments = {
            name: tuple(v[k] for k in chosen) if isinstance(v, tuple) and len(v) > 1 else v
            for name, v in call.arguments.items()
        }
        call = p.MethodCall(name=call.name, arguments=arguments)
    return p.Merge(merge=sources, by=call)
