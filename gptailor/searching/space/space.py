"""A search space: an open plan's choices as genes, and the arrays that strategies work on.

space = space_of(plan, layers=30)
population = sample(space.table, key_of(0), 1)
closed = decode(space, Genome(*(genes[0] for genes in population)))
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

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
        text = format_plan(self.plan.model_copy(update={"search": None, "expects": (), "gguf": ()}))
        return hashlib.sha256(f"{self.layers}\n{text}".encode()).hexdigest()


def space_of(plan: p.Plan, layers: int, tied: Collection[str] = ()) -> Space:
    """Return the space of an open plan without faults. Raise SpaceError if it leaves nothing open.

    `tied` are the models with one tensor for embedding and head.
    """
    plan = searched(plan, layers, tied)
    collecting = Collecting(plan, layers)
    if not collecting.sites:
        raise SpaceError("the plan has no open choices, so there is nothing to search")
    return Space(
        plan,
        layers,
        tuple(collecting.bits),
        tuple(collecting.picks),
        tuple(collecting.reals),
        {site.place: collecting.numbers(site.place) for site in collecting.sites},
        table_of(collecting),
    )


def with_gap_errors(space: Space, errors: Sequence[Sequence[float]]) -> Space:
    """Return a space with the errors of a bridge over each gap in its table.

    `errors` has, for each layer, the errors of a gap of 1, 2, … layers after it. A gap that begins
    with the first layer can't be bridged, and has the greatest error.
    """
    most = max(map(max, filter(None, errors)), default=1.0)
    found = np.full((space.layers, max(map(len, errors), default=1) or 1), most)
    for after, row in enumerate(errors[:-1]):
        if row:
            found[after + 1] = row[-1]
            found[after + 1, : len(row)] = row
    return replace(space, table=space.table._replace(gap_errors=np.maximum(found, 1e-6)))
