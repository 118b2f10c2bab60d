"""The output's layers one by one: what each is made of, and what became of every position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from gptailor.plan.faults import Place
from gptailor.plan.parts import BRANCHES, Branch, holds, may_overlap, rank
from gptailor.plan.plan import LayerBelow, LayerOf, Plan, Recipe, Repeat, Take, Value
from gptailor.plan.registry import (
    BRIDGE_RIDGE,
    BRIDGE_TOKENS,
    HEAL_RANK,
    HEAL_SEED,
    HEAL_TOKENS,
)
from gptailor.plan.walk import drops_by_choice
from gptailor.plan.written import written_out

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


def slots(plan: Plan, count: int) -> list[Slot]:
    """All positions of a base with that many layers, dropped ones too, or the items of a stack.

    Places are those of the plan that is written out.
    """
    plan = written_out(plan, count)
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


def kept(plan: Plan, count: int) -> list[Slot]:
    """The output's layers of a closed plan, in order."""
    return repeated(plan, [slot for slot in slots(plan, count) if slot.dropped == "no"])


def blocks(plan: Plan) -> list[Repeat]:
    """The blocks that come again whatever the plan's choices come to, in order."""
    said = (one for one in plan.repeats if isinstance(one, Repeat) and isinstance(one.times, int))
    return [one for one in said if not one.maybe]


def repeated(plan: Plan, there: Sequence[Slot]) -> list[Slot]:
    """The slots that are there, and after the last one of each block its slots again.

    A hidden state goes through the scales of a block in every run of it.
    """
    found = list(there)
    for block in blocks(plan):
        positions = range(block.first, block.last + 1)
        inside = [i for i, slot in enumerate(found) if slot.position in positions]
        times = block.times if isinstance(block.times, int) else 0
        again = [replace(found[i], run=run + 1) for run in range(times) for i in inside]
        end = inside[-1] + 1 if inside else 0
        found[end:end] = again
    divisor = 1.0
    for i, slot in enumerate(found if plan.repeats and plan.scales else ()):
        found[i] = replace(slot, divisor=divisor)
        divisor *= slot.scale if isinstance(slot.scale, int | float) else 1.0
    return found


def block_of(plan: Plan, position: int | None) -> Repeat | None:
    """The block that a position comes again in."""
    if position is None:
        return None
    return next((one for one in blocks(plan) if one.first <= position <= one.last), None)


@final
@dataclass(frozen=True, slots=True)
class Gap:
    """Positions that a closed plan drops between two that stay, and the bridge over them.

    `after` is the last kept position before them, `until` the next kept one (the base's number of
    layers: the final norm), `index` the output's layer that `after` became. `start` and `end` are
    the numbers that both layers have where nothing is dropped, which are their positions unless
    layers come again. `on` is the text as the plan names it, `at` the bridge's place in the plan.
    """

    after: int
    until: int
    index: int
    start: int
    end: int
    on: str
    tokens: int
    ridge: float
    at: Place

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"the gap after L{self.after}"


def gaps(plan: Plan, count: int) -> list[Gap]:
    """The gaps of a closed plan that a bridge closes, in order; none before the first layer."""
    if plan.stack is not None or not plan.bridges:
        return []
    plan = written_out(plan, count)
    left = kept(plan, count)
    last = len(kept(undone(plan), count)) if plan.repeats else count
    numbers = [*undone_numbers(plan, count), last]
    positions = [slot.position for slot in left if slot.position is not None]
    found = []
    for index, (after, until) in enumerate(zip(positions, [*positions[1:], count], strict=True)):
        i = bridge_over(plan, after)
        block = block_of(plan, after)
        inside = block is not None and block == block_of(plan, until)
        if until != after + 1 and i is not None and not inside:
            bridge = plan.bridges[i]
            tokens = BRIDGE_TOKENS if bridge.tokens is None else bridge.tokens
            ridge = BRIDGE_RIDGE if bridge.ridge is None else bridge.ridge
            assert isinstance(tokens, int), "an open plan"
            assert isinstance(ridge, int | float), "an open plan"
            at: Place = ("bridges", i)
            start, end = numbers[index : index + 2]
            found.append(Gap(after, until, index, start, end, bridge.on, tokens, float(ridge), at))
    return found


def undone_numbers(plan: Plan, count: int) -> list[int]:
    """Of each layer of a closed plan's output, its number where nothing is dropped."""
    if not plan.repeats:
        return [slot.position or 0 for slot in kept(plan, count)]
    all_of_it = kept(undone(plan), count)
    numbers = {(slot.position, slot.run): number for number, slot in enumerate(all_of_it)}
    return [numbers[slot.position, slot.run] for slot in kept(plan, count)]


def bridge_over(plan: Plan, after: int | None) -> int | None:
    """The number of the bridge that is for the gap after a position, should there be one."""
    return next((i for i, b in enumerate(plan.bridges) if b.after in (None, after)), None)


@final
@dataclass(frozen=True, slots=True)
class Healing:
    """What a closed plan's output learns after it is made, its defaults filled in.

    `on` is the text as the plan names it, `rank` None where the weights themselves learn, `indices`
    the output's layers that learn, `teacher` a model or None: the plan with nothing dropped.
    """

    on: str
    tokens: int
    rank: int | None
    seed: int
    indices: tuple[int, ...]
    teacher: str | None
    at: Place = ("heal",)


def may_be_healed(plan: Plan) -> bool:
    """Whether `heal` does something: the plan, as its choices may be closed, isn't its teacher."""
    if plan.heal is None:
        return False
    drops = plan.drops or plan.drop_any or plan.windows
    return bool(drops or plan.stack or plan.heal.teacher is not None)


def healing(plan: Plan, count: int) -> Healing | None:
    """How a closed plan is healed; None if it isn't, as where nothing is dropped or nothing learns.

    A plan that drops nothing is its own teacher, unless it names one.
    """
    heal = plan.heal
    if heal is None:
        return None
    left = kept(plan, count)
    teacher = "base" if heal.teacher is None and plan.stack is not None else heal.teacher
    learning = [i for i, slot in enumerate(left) if not heal.layers or slot.position in heal.layers]
    if not learning or (teacher is None and not plan.drops):
        return None
    rank = HEAL_RANK if heal.rank is None else heal.rank
    return Healing(
        on=heal.on,
        tokens=HEAL_TOKENS if heal.tokens is None else heal.tokens,
        rank=rank if isinstance(rank, int) else None,
        seed=HEAL_SEED if heal.seed is None else heal.seed,
        indices=tuple(learning),
        teacher=teacher,
    )


def undone(plan: Plan) -> Plan:
    """A closed plan with nothing dropped, bridged or healed: what bridges and healing aim at."""
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
