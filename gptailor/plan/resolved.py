"""A plan resolved for its base's number of layers: everything derived from it, computed once."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import final

from gptailor.plan.layers import (
    Slot,
    block_of,
    blocks,
    bridge_over,
    repeated,
    slots_of,
    undone,
)
from gptailor.plan.plan import HealText, Plan
from gptailor.plan.registry import (
    BRIDGE_RIDGE,
    HEAL_RANK,
    HEAL_SEED,
    HEAL_TOKENS,
)
from gptailor.plan.sites import open_choices
from gptailor.plan.written_out import searched, written_out


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

    `texts` have their teachers, None for the plan with nothing dropped. `tokens` are those of all
    texts together, `rank` is None where whole weights are trained, `indices` are the output's
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
        """Return the teachers, each once, in the texts' order; not those of predictions."""
        return tuple(dict.fromkeys(text.teacher for text in self.texts if not text.predicted))


@final
@dataclass(frozen=True, eq=False)
class Resolved:
    """A plan for a base of `count` layers, with everything derived from both, each computed once.

    `declared` is the plan as its text has it; `tied` names the models whose embedding and head are
    one tensor. `declared_places` map the places of faults in `plan` back.
    `kept_experts` are the numbers of the experts that stay in each layer of the plan with nothing
    dropped, () for a dense layer; None before a text has chosen them.
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
