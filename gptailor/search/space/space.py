"""A search space: an open plan's choices as genes, and the arrays that strategies work on.

space = space_of(plan, layers=30)
genome = sample(space.table, jax.random.key(0))
closed = decode(space, genome)
assert encode(space, closed) is the same plan's genome
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from gptailor.lang.format import format_plan
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.search.space.collect import Collected, collect
from gptailor.search.space.condition import Condition, Conditions, bit, every, option
from gptailor.search.space.genes import Bit, Gene, GenePath, Pick, Real
from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, layout


class SpaceError(TailorError):
    """There is nothing to search, or a plan is not in the space."""


@final
@dataclass(frozen=True, eq=False)
class Space:
    """The choices of an open plan over a base of that many layers.

    Genes are numbered within their kind, as a `Genome` has them; `index` says which one a choice of
    the plan is closed by.
    """

    plan: Plan
    layers: int
    bits: tuple[Bit, ...]
    picks: tuple[Pick, ...]
    reals: tuple[Real, ...]
    index: Mapping[GenePath, int]
    table: Table
    keeper: int | None
    """The position that stays where choices would drop all."""

    @property
    def size(self) -> int:
        """The number of genes."""
        return len(self.bits) + len(self.picks) + len(self.reals)

    @property
    def names(self) -> tuple[str, ...]:
        """What the genes are called, in the order of a genome; no two alike."""
        genes: tuple[Gene, ...] = (*self.bits, *self.picks, *self.reals)
        return tuple(gene.name for gene in genes)

    @property
    def digest(self) -> str:
        """Equal for equal spaces: of the plan without its `search` block, and the layers."""
        text = format_plan(self.plan.model_copy(update={"search": None}))
        return hashlib.sha256(f"{self.layers}\n{text}".encode()).hexdigest()


def space_of(plan: Plan, layers: int) -> Space:
    """The space of an open plan without faults. Raises SpaceError if it leaves nothing open."""
    found = collect(plan, layers)
    if not (found.bits or found.picks or found.reals):
        message = "the plan leaves nothing open, so there is nothing to search"
        raise SpaceError(message)
    return Space(
        plan,
        layers,
        tuple(found.bits),
        tuple(found.picks),
        tuple(found.reals),
        found.index,
        _table(found),
        found.keeper,
    )


@final
@dataclass(frozen=True)
class _Mark:
    """A feature that is there or not."""

    kind: str
    at: int
    when: Condition


def _table(found: Collected) -> Table:
    options = [len(pick.options) for pick in found.picks]
    places = layout(len(found.bits), sum(options), len(found.subsets), len(found.items))
    conditions = Conditions(places, options)
    marks = _marks(found)
    whens = [gene.when for genes in (found.bits, found.picks, found.reals) for gene in genes]
    for when in [*whens, *(mark.when for mark in marks)]:
        conditions.add(when)
    featured: list[_Mark | Real] = [*marks, *found.reals]
    return Table(
        group=_ints([gene.group for gene in found.bits]),
        sizes=_ints(found.sizes),
        options=_ints(options),
        at_bits=_at(found.bits),
        at_picks=_at(found.picks),
        at_reals=_at(found.reals),
        at_features=_at(featured),
        pairs=_pairs(featured),
        defaults=Genome(
            np.array([gene.default for gene in found.bits], bool),
            _ints([gene.default for gene in found.picks]),
            np.full(len(found.reals), 0.5, np.float32),
        ),
        option_pick=_ints([i for i, n in enumerate(options) for _ in range(n)]),
        option_value=_ints([v for n in options for v in range(n)]),
        members=_members(found.subsets, len(found.bits)),
        items=_ints(found.items),
        room=np.array(found.room, np.int32),
        wide=conditions.wide,
        rest=conditions.rest,
    )


def _marks(found: Collected) -> list[_Mark]:
    marks = [
        _Mark(gene.kind, gene.at, every(gene.when, bit(i))) for i, gene in enumerate(found.bits)
    ]
    for i, pick in enumerate(found.picks):
        marks += [
            _Mark(f"{pick.kind} {label}", pick.at, every(pick.when, option(i, v)))
            for v, label in enumerate(pick.labels)
        ]
    return marks + [_Mark("merged", at, when) for at, when in found.merged.values()]


def _pairs(featured: Sequence[_Mark | Real]) -> np.ndarray:
    """Numbers of features of one kind at positions next to each other; of drops, two apart too."""
    places = {(one.kind, one.at): i for i, one in enumerate(featured) if one.at >= 0}
    found = [
        (i, places[kind, at + step])
        for (kind, at), i in places.items()
        for step in ((1, 2) if kind == "drop" else (1,))
        if (kind, at + step) in places
    ]
    return np.array(found, np.int32).reshape(len(found), 2)


def _members(subsets: Sequence[Sequence[int]], none: int) -> np.ndarray:
    """`none` pads: the literal behind the last bit, which is false."""
    width = max(1, *map(len, subsets)) if subsets else 1
    rows = [[*subset, *[none] * (width - len(subset))] for subset in subsets]
    return np.array(rows, np.int32).reshape(len(subsets), width)


def _at(genes: Sequence[Gene | _Mark]) -> np.ndarray:
    return _ints([gene.at for gene in genes])


def _ints(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int32)
