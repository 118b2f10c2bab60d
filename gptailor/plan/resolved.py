"""A plan resolved for its base's number of layers: everything derived from it, computed once.

A slot has the recipe and the fate of a position of the plan, written out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, final

from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import BRANCHES, Branch, holds, may_overlap, rank
from gptailor.plan.plan import HealText, LayerBelow, LayerOf, Plan, Recipe, Repeat, Take, Value
from gptailor.plan.registry import (
    BRIDGE_RIDGE,
    HEAL_RANK,
    HEAL_SEED,
    HEAL_TOKENS,
)
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.plan.written_out import searched, written_out


@final
@dataclass(frozen=True)
class LayerRecipe:
    """The recipe of a layer or of a part of one, and its place in the plan (empty: the base's own).

    `level` is a `LayerBelow`'s level, or 0. `below` holds where a `maybe` isn't taken, unless the
    base's own layer does.
    """

    recipe: Recipe
    at: Place = ()
    maybe: bool = False
    part: str | None = None
    level: int = 0
    below: "LayerRecipe | None" = None

    @property
    def chain(self) -> "Iterator[LayerRecipe]":
        """Yield this recipe and the recipes below it, from the top."""
        current: LayerRecipe | None = self
        while current is not None:
            yield current
            current = current.below


@final
@dataclass(frozen=True)
class Slot:
    """A position of the base or an item of a stack, with its recipes and its fate.

    `part_recipes` are the plan's; recipes of a smaller level and of finer parts come first.
    `divisor` is the product of the scales of the layers before it; the outputs of its residual
    branches are divided by it. A `bridged` slot is dropped, and a bridge closes the gap. `learns`
    means that `heal` names the slot. `run` counts the runs of a repeated block from 0.
    """

    position: int | None
    part_recipes: tuple[LayerRecipe, ...]
    dropped: Literal["no", "yes", "maybe"] = "no"
    scale: Value | None = None
    divisor: float = 1.0
    bridged: bool = False
    learns: bool = False
    run: int = 0

    @cached_property
    def recipes(self) -> dict[str | None, LayerRecipe]:
        """Return the recipe of the whole layer or of each branch, then the recipes of finer parts.

        Finer parts win. Coarser recipes and recipes of a higher level are chained below. Without an
        entry the base's own layer holds.
        """
        entries = self.part_recipes
        coarse = [entry for entry in entries if rank(entry.part) < 2]
        parts: tuple[str | None, ...] = BRANCHES if any(entry.part for entry in coarse) else (None,)
        recipes = {part: self._chained([e for e in coarse if e.part in {None, part}])
                   for part in parts}  # fmt: skip
        for entry in sorted(entries, key=lambda entry: (rank(entry.part), entry.part or "")):
            if rank(entry.part) > 1:
                recipes.setdefault(entry.part, entry)
        return recipes

    def part(self, part: Branch) -> LayerRecipe:
        """Return a branch's own recipe or the whole layer's, without recipes of finer parts."""
        return self.recipes[part] if part in self.recipes else self.recipes[None]

    @property
    def parted(self) -> bool:
        """Return whether a part finer than a branch has a recipe of its own."""
        return any(rank(part) > 1 for part in self.recipes)

    def tensor(self, branch: Branch, role: str | None, name: str) -> LayerRecipe:
        """Return the recipe of a branch's tensor, by its role and its name within the layer."""
        return self._chained([e for e in self.part_recipes if holds(e.part, branch, role, name)])

    def _chained(self, recipes: Sequence[LayerRecipe]) -> LayerRecipe:
        """Return the first recipe, above the next ones as long as all before may not be taken."""
        certain = next((i for i, recipe in enumerate(recipes) if not recipe.maybe), len(recipes))
        below: LayerRecipe | None = None
        for recipe in reversed(recipes[: certain + 1]):
            below = recipe if below is None else replace(recipe, below=below)
        return below or LayerRecipe(own(self.position or 0))

    def called(self, part: str | None) -> str:
        """Return a part's name; "other norms" where a recipe above it takes some of the norms."""
        level = next((entry.level for entry in self.part_recipes if entry.part == part), 0)
        above = (e for e in self.part_recipes if e.level < level and not e.maybe)
        some = any(rank(entry.part) and may_overlap(entry.part, part) for entry in above)
        return f"other {part}" if some and rank(part) > 1 else part or ""


def own(position: int | None) -> Take:
    """Return the recipe of the base's own layer; without a position, of the base's own tensor."""
    return Take(take=LayerOf(model="base", layer=position))


def slots_of(plan: Plan, count: int) -> list[Slot]:
    """Return a slot for each position of the base, dropped ones too, or for each item of a stack.

    `plan` is written out for a base of `count` layers (`gptailor.plan.written_out`).
    """
    if plan.stack is not None:
        recipes = [
            LayerRecipe(item.recipe, ("stack", "items", i), item.maybe)
            for i, item in enumerate(plan.stack.items)
        ]
        return [Slot(None, (recipe,), "maybe" if recipe.maybe else "no") for recipe in recipes]
    by_position: dict[int, list[LayerRecipe]] = {}
    for i, layer in enumerate(plan.layers):
        level = layer.level if isinstance(layer, LayerBelow) else 0
        recipe = LayerRecipe(layer.recipe, ("layers", i), layer.maybe, layer.part, level)
        by_position.setdefault(layer.position, []).append(recipe)
    drops: dict[int, Literal["no", "yes", "maybe"]] = {}
    for _, choice in drops_by_choice(plan):
        drops |= dict.fromkeys(choice.among, "maybe")
    drops |= {drop.position: "maybe" if drop.maybe else "yes" for drop in plan.drops}
    scales = {scale.position: scale.factor for scale in plan.scales}
    healed = frozenset(plan.heal.layers if plan.heal is not None else ())
    slots = []
    divisor = 1.0
    bridged = False
    for position in range(count):
        entries = sorted(by_position.get(position, ()), key=lambda e: (e.level, -rank(e.part)))
        dropped = drops.get(position, "no")
        scale = scales.get(position) if dropped != "yes" else None
        if dropped != "yes":
            bridged = bridge_over(plan, position) is not None
        over = bridged and dropped == "yes" and block_of(plan, position) is None
        learns = position in healed and dropped != "yes"
        slots.append(Slot(position, tuple(entries), dropped, scale, divisor, over, learns))
        divisor *= scale if isinstance(scale, int | float) else 1.0
    return slots


def blocks(plan: Plan) -> list[Repeat]:
    """Return the blocks that run again whatever the plan's choices become, in order."""
    fixed = (r for r in plan.repeats if isinstance(r, Repeat) and isinstance(r.times, int))
    return [repeat for repeat in fixed if not repeat.maybe]


def block_of(plan: Plan, position: int | None) -> Repeat | None:
    """Return the block around a position, or None."""
    if position is None:
        return None
    around = (block for block in blocks(plan) if block.first <= position <= block.last)
    return next(around, None)


def repeated(plan: Plan, slots: Sequence[Slot]) -> list[Slot]:
    """Return the slots, with a block's slots once more for each further run of the block.

    The further runs follow the block's last slot. A hidden state passes the scales of a block in
    every run.
    """
    result = list(slots)
    for block in blocks(plan):
        positions = range(block.first, block.last + 1)
        inside = [i for i, slot in enumerate(result) if slot.position in positions]
        times = block.times if isinstance(block.times, int) else 0
        again = [replace(result[i], run=run + 1) for run in range(times) for i in inside]
        end = inside[-1] + 1 if inside else 0
        result[end:end] = again
    divisor = 1.0
    for i, slot in enumerate(result if plan.repeats and plan.scales else ()):
        result[i] = replace(slot, divisor=divisor)
        divisor *= slot.scale if isinstance(slot.scale, int | float) else 1.0
    return result


def bridge_over(plan: Plan, after: int | None) -> int | None:
    """Return the index of the bridge for a gap after this position, or None."""
    return next((i for i, b in enumerate(plan.bridges) if b.after in (None, after)), None)


def undone(plan: Plan) -> Plan:
    """Return a closed plan with nothing dropped, bridged or healed: the aim of bridge and heal.

    A vocabulary stays cut, so that both sides of a bridge read the same tokens. A teacher of
    healing has its whole vocabulary: `gptailor.evaluation.fits.heal.whole_vocabulary`.
    """
    fits = {name: None for name in plan.text_fits if name != "vocabulary"}
    return plan.model_copy(update={"drops": (), **fits, "bridges": (), "heal": None})


@final
@dataclass(frozen=True, slots=True)
class Gap:
    """Positions that a closed plan drops between two that stay, and the bridge over them.

    `after` is the last kept position before them, `until` the next kept one (the base's number of
    layers: the final norm), `index` the output's layer that `after` became. `start` and `end` are
    the numbers of both layers in the plan with nothing dropped: their positions, unless layers
    repeat. `on` is the text as the plan names it, `tokens` their number if the plan names one, and
    `by` a fit of another package.
    """

    after: int
    until: int
    index: int
    start: int
    end: int
    on: str
    tokens: int | None
    ridge: float
    by: str | None = None

    @property
    def name(self) -> str:
        """Return the gap's name in messages."""
        return f"the gap after L{self.after}"


@final
@dataclass(frozen=True, slots=True)
class Healing:
    """The training of a closed plan's output, with its defaults filled in.

    `texts` have their teachers, None for the plan with nothing dropped. `tokens` is the number for
    all texts together, `rank` is None if whole weights are trained, `indices` are the output's
    layers that are trained. With `only_answers` only the tokens of answers count.
    """

    texts: tuple[HealText, ...]
    tokens: int
    rank: int | None
    seed: int
    indices: tuple[int, ...]
    only_answers: bool = False

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Return each text's share of the tokens."""
        weights = [Fraction(text.weight) for text in self.texts]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def teachers(self) -> tuple[str | None, ...]:
        """Return the teachers, each once, in the texts' order, without predictions' teachers."""
        return tuple(dict.fromkeys(text.teacher for text in self.texts if not text.predicted))


@final
@dataclass(frozen=True, eq=False)
class Resolved:
    """A plan for a base of `count` layers, with everything derived from both, each computed once.

    `declared` is the plan as its text has it; `tied` names the models with one tensor for embedding
    and head. `declared_places` map the places of faults in `plan` back. `kept_experts` are the
    numbers of the experts that stay in each layer of the plan with nothing dropped, () for a dense
    layer; None before a text has chosen them.
    """

    declared: Plan
    count: int
    tied: frozenset[str] = frozenset()
    kept_experts: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def plan(self) -> Plan:
        """Return the plan written out: an entry for each position, a number for each name and
        curve.
        """
        return written_out(self.declared, self.count, self.tied)

    @cached_property
    def choices(self) -> int:
        """Return the number of choices that a search closes."""
        return open_choices(searched(self.declared, self.count, self.tied))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Return all positions of the base, dropped ones too, or the items of a stack."""
        return tuple(slots_of(self.plan, self.count))

    @cached_property
    def kept(self) -> tuple[Slot, ...]:
        """Return the output's layers of a closed plan, in order."""
        return tuple(repeated(self.plan, [slot for slot in self.slots if slot.dropped == "no"]))

    @cached_property
    def remaining(self) -> tuple[Slot, ...]:
        """Return the output's layers with all that may yet be dropped by choice, in order."""
        return tuple(repeated(self.plan, [slot for slot in self.slots if slot.dropped != "yes"]))

    @cached_property
    def layers_are_certain(self) -> bool:
        """Return whether the output has the same layers whatever is chosen."""
        fixed_blocks = len(blocks(self.plan)) == len(self.plan.repeats)
        return fixed_blocks and all(slot.dropped != "maybe" for slot in self.slots)

    @cached_property
    def undone(self) -> "Resolved":
        """Return the plan with nothing dropped, bridged or healed: the aim of bridge and heal."""
        return Resolved(undone(self.declared), self.count, self.tied)

    @cached_property
    def undone_numbers(self) -> tuple[int, ...]:
        """Return for each kept layer its number in the plan with nothing dropped."""
        if self.plan.stack is not None:  # it drops nothing
            return tuple(range(len(self.kept)))
        if not self.plan.repeats:
            return tuple(slot.position or 0 for slot in self.kept)
        numbers = {(s.position, s.run): number for number, s in enumerate(self.undone.kept)}
        return tuple(numbers[slot.position, slot.run] for slot in self.kept)

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """Return the gaps of a closed plan that a bridge closes, in order.

        No gap lies before the first kept layer.
        """
        plan = self.plan
        if plan.stack is not None or not plan.bridges:
            return ()
        last = len(self.undone.kept) if plan.repeats else self.count
        numbers = [*self.undone_numbers, last]
        positions = [slot.position for slot in self.kept if slot.position is not None]
        pairs = zip(positions, [*positions[1:], self.count], strict=True)
        gaps = []
        for index, (after, until) in enumerate(pairs):
            i = bridge_over(plan, after)
            block = block_of(plan, after)
            inside = block is not None and block == block_of(plan, until)
            if until == after + 1 or i is None or inside:
                continue
            bridge = plan.bridges[i]
            ridge = BRIDGE_RIDGE if bridge.ridge is None else bridge.ridge
            assert isinstance(bridge.tokens, int | None), "an open plan"
            assert isinstance(ridge, int | float), "an open plan"
            start, end = numbers[index : index + 2]
            ends = after, until, index, start, end
            gaps.append(Gap(*ends, bridge.on, bridge.tokens, float(ridge), bridge.by))
        return tuple(gaps)

    @cached_property
    def healing(self) -> Healing | None:
        """Return the training of a closed plan's output, or None where nothing is trained.

        A plan that drops nothing is its own teacher, unless it names one or a file of predictions.
        """
        heal = self.plan.heal
        if heal is None:
            return None
        named = heal.layers
        trained = [i for i, s in enumerate(self.kept) if not named or s.position in named]
        cut = self.plan.stack or self.plan.drops or self.plan.text_fits
        if not trained or not (cut or heal.has_other_teacher):
            return None
        rank = HEAL_RANK if heal.rank is None else heal.rank
        default = None if self.plan.stack is None else "base"
        teachers = (teacher or default for teacher, _ in heal.taught)
        pairs = zip(heal.on, teachers, strict=True)
        return Healing(
            texts=tuple(text.model_copy(update={"teacher": teacher}) for text, teacher in pairs),
            tokens=HEAL_TOKENS if heal.tokens is None else heal.tokens,
            rank=rank if isinstance(rank, int) else None,
            seed=HEAL_SEED if heal.seed is None else heal.seed,
            indices=tuple(trained),
            only_answers=heal.loss == "answers",
        )
