"""A search space: an open plan's choices as genes, and the arrays that strategies work on.

space = space_of(plan, layers=30)
population = sample(space.table, key_of(0), 1)
closed = decode(space, Genome(*(genes[0] for genes in population)))
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

from gptailor.lang.format import format_plan
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, TailorError
from gptailor.plan.sites import entries
from gptailor.plan.written_out import searched
from gptailor.searching.space import genome as g
from gptailor.searching.space.collect import Collecting
from gptailor.searching.space.table import Table, table_of


@final
class SpaceError(TailorError):
    """A plan without anything to search, or a plan that is not in the space."""


@final
@dataclass(frozen=True, eq=False)
class Space:
    """The choices of an open plan over a base of `layers` layers.

    Genes are numbered within their kind, as in a `Genome`. `index` contains the genes of each
    choice by the choice's place: one gene, or a bit for each position or member.
    """

    plan: p.Plan
    layers: int
    bits: tuple[g.Bit, ...]
    picks: tuple[g.Pick, ...]
    reals: tuple[g.Real, ...]
    index: Mapping[Place, tuple[int, ...]]
    table: Table

    @cached_property
    def changing(self) -> frozenset[Place]:
        """The places of choices and entries, and all places around them: the others stay."""
        places = (*self.index, *(at for at, _ in entries(self.plan)))
        return frozenset(place[:length] for place in places for length in range(len(place) + 1))

    @property
    def digest(self) -> str:
        """A hash of the layers and of the plan without its `search` block and expectations."""
        text = format_plan(self.plan.model_copy(update={"search": None, "expects": ()}))
        return hashlib.sha256(f"{self.layers}\n{text}".encode()).hexdigest()


def space_of(plan: p.Plan, layers: int, tied: Collection[str] = ()) -> Space:
    """Return the space of an open plan without faults. Raise SpaceError if it leaves nothing open.

    `tied` are the models whose embedding and head are one tensor.
    """
    plan = searched(plan, layers, tied)
    collecting = Collecting(plan, layers)
    if not collecting.sites:
        raise SpaceError("the plan leaves nothing open, so there is nothing to search")
    return Space(
        plan,
        layers,
        tuple(collecting.bits),
        tuple(collecting.picks),
        tuple(collecting.reals),
        {site.place: collecting.numbers(site.place) for site in collecting.sites},
        table_of(collecting),
    )
