"""The slots of a plan that is written out: the recipe and the fate of every position.

`gptailor.plan.resolved` computes them once for each plan; nothing else calls `slots_of`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from gptailor.plan.faults import Place
from gptailor.plan.parts import BRANCHES, Branch, holds, may_overlap, rank
from gptailor.plan.plan import LayerBelow, LayerOf, Plan, Recipe, Repeat, Take, Value
from gptailor.plan.walk import drops_by_choice

PARTS = BRANCHES
"""The parts that make up a layer."""


@final
@dataclass(frozen=True)
class Made:
    """What a layer, or a part of one, is made of, and where the plan says so (empty: nowhere).

    `below` is what holds where a `maybe` isn't taken, if it isn't the base's own.
    """

    recipe: Recipe
    at: Place = ()
    maybe: bool = False
    below: "Made | None" = None

    @property
    def chain(self) -> "Iterator[Made]":
        """This, and what is below it."""
        made: Made | None = self
        while made is not None:
            yield made
            made = made.below


@final
@dataclass(frozen=True)
class Decided:
    """A part of a position, and what it is made of; `level` as of a `LayerBelow`, or 0."""

    part: str | None
    level: int
    made: Made


@final
@dataclass(frozen=True)
class Slot:
    """A position of the base, or an item of a stack, and what becomes of it.

    `made` has the whole layer (None), both branches or all three, then finer parts, which win over
    coarser ones. `divisor` is the product of the scales of the layers before it, by which its
    residual branches' outputs are divided. `bridged` says that it is dropped and a bridge closes
    the gap, `healed` that `heal` names it as one that learns. `run` counts the runs of a block that
    comes again, from 0.
    """

    position: int | None
    made: dict[str | None, Made]
    dropped: Literal["no", "yes", "maybe"] = "no"
    scale: Value | None = None
    divisor: float = 1.0
    bridged: bool = False
    healed: bool = False
    decided: tuple[Decided, ...] = ()
    run: int = 0

    def part(self, part: Branch) -> Made:
        """What a branch is made of but for finer parts: its own recipe, or the whole layer's."""
        return self.made[part] if part in self.made else self.made[None]

    @property
    def parted(self) -> bool:
        """Whether a part finer than a branch is made of something else."""
        return any(rank(part) > 1 for part in self.made)

    def tensor(self, branch: Branch, role: str | None, rest: str) -> Made:
        """What a tensor of a branch is made of, by its role and its name within the layer."""
        held = [one.made for one in self.decided if holds(one.part, branch, role, rest)]
        return _chained(held, self.position or 0)

    def called(self, part: str | None) -> str:
        """A part's name; "other norms" where something else is said of some of them above it."""
        level = next((one.level for one in self.decided if one.part == part), 0)
        above = (one for one in self.decided if one.level < level and not one.made.maybe)
        some = any(rank(one.part) and may_overlap(one.part, part) for one in above)
        return f"other {part}" if some and rank(part) > 1 else part or ""


def own(position: int) -> Take:
    """The base's own layer."""
    return Take(take=LayerOf(model="base", layer=position))


def slots_of(plan: Plan, count: int) -> list[Slot]:
    """Return a slot for each position of the base, dropped ones too, or for each item of a stack.

    `plan` is written out for a base of `count` layers (`gptailor.plan.written`).
    """
    if plan.stack is not None:
        items = enumerate(plan.stack.items)
        each = [Made(item.recipe, ("stack", "items", i), item.maybe) for i, item in items]
        return [Slot(None, {None: made}, "maybe" if made.maybe else "no") for made in each]
    decided: dict[int, list[Decided]] = {}
    for i, layer in enumerate(plan.layers):
        made = Made(layer.recipe, ("layers", i), layer.maybe)
        level = layer.level if isinstance(layer, LayerBelow) else 0
        decided.setdefault(layer.position, []).append(Decided(layer.part, level, made))
    drops: dict[int, Literal["no", "yes", "maybe"]] = {}
    for _, choice in drops_by_choice(plan):
        drops |= dict.fromkeys(choice.among, "maybe")
    drops |= {drop.position: "maybe" if drop.maybe else "yes" for drop in plan.drops}
    scales = {scale.position: scale.factor for scale in plan.scales}
    healed = frozenset(plan.heal.layers if plan.heal is not None else ())
    found = []
    divisor = 1.0
    bridged = False
    for position in range(count):
        there = sorted(decided.get(position, ()), key=lambda one: (one.level, -rank(one.part)))
        made_of = _filled(there, position)
        dropped = drops.get(position, "no")
        scale = scales.get(position) if dropped != "yes" else None
        if dropped != "yes":
            bridged = bridge_over(plan, position) is not None
        over = bridged and dropped == "yes" and block_of(plan, position) is None
        learns = position in healed and dropped != "yes"
        found.append(Slot(position, made_of, dropped, scale, divisor, over, learns, tuple(there)))
        divisor *= scale if isinstance(scale, int | float) else 1.0
    return found


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
    """Return the slots with those of each block once more for each further run of the block.

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


def may_be_healed(plan: Plan) -> bool:
    """Return whether `heal` can change something, however the plan's choices are closed.

    It changes nothing where the plan is its own teacher.
    """
    if plan.heal is None:
        return False
    drops = plan.drops or plan.drop_any or plan.windows
    return bool(drops or plan.stack or plan.heal.teacher is not None)


def undone(plan: Plan) -> Plan:
    """Return a closed plan with nothing dropped, bridged or healed: the aim of bridge and heal."""
    return plan.model_copy(update={"drops": (), "bridges": (), "heal": None})


def _filled(decided: Sequence[Decided], position: int) -> dict[str | None, Made]:
    """What the whole layer or its branches are made of, what is coarser or below them below them.

    Finer parts come after them. What is not decided is the base's own.
    """
    coarse = [one for one in decided if rank(one.part) < 2]
    found: dict[str | None, Made]
    if all(one.part is None for one in coarse):
        found = {None: _chained([one.made for one in coarse], position)}
    else:
        found = {
            part: _chained([one.made for one in coarse if one.part in {None, part}], position)
            for part in PARTS
        }
    finer = sorted({one.part for one in decided} - {None, *PARTS}, key=lambda p: (rank(p), p))
    return found | {part: next(o.made for o in decided if o.part == part) for part in finer}


def _chained(made: Sequence[Made], position: int) -> Made:
    """The first of them, above the others while those before may not be taken."""
    certain = next((i for i, one in enumerate(made) if not one.maybe), None)
    there = made if certain is None else made[: certain + 1]
    below: Made | None = None
    for one in reversed(there):
        below = one if below is None else replace(one, below=below)
    return below or Made(own(position))
