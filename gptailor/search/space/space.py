"""A search space: an open plan's choices as genes, and the arrays that strategies work on.

space = space_of(plan, layers=30)
population = sample(space.table, key_of(0), 1)
closed = decode(space, Genome(*(genes[0] for genes in population)))
assert encode(space, closed) is the same plan's genome
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import final

from gptailor.lang.format import format_plan
from gptailor.plan import plan as p
from gptailor.plan.faults import Place, TailorError
from gptailor.plan.sites import Site
from gptailor.plan.written_out import searched, spread_alike
from gptailor.search.space import genome as g
from gptailor.search.space.collect import Collecting
from gptailor.search.space.table import Table, table_of


@final
class SpaceError(TailorError):
    """There is nothing to search, or a plan is not in the space."""


@final
@dataclass(frozen=True, eq=False)
class Space:
    """The choices of an open plan over a base of that many layers.

    Genes are numbered within their kind, as a `Genome` has them. `index` says by which a choice of
    the plan is closed, by its place: one gene, or a bit for each position or member.
    """

    plan: p.Plan
    layers: int
    bits: tuple[g.Bit, ...]
    picks: tuple[g.Pick, ...]
    reals: tuple[g.Real, ...]
    sites: tuple[Site, ...]
    index: Mapping[Place, tuple[int, ...]]
    table: Table
    keeper: int | None
    """The position that stays where choices would drop all."""
    spread: Callable[[p.Plan], p.Plan]
    """A closed plan, which may have others and a whole, as decoding makes one."""

    @cached_property
    def inside(self) -> Mapping[Place, Sequence[Site]]:
        """The choices in each entry and in what is no layer, by its place, the innermost first."""
        found: dict[Place, list[Site]] = {}
        for site in reversed(self.sites):
            found.setdefault(site.entry or site.place[:1], []).append(site)
        return found

    @property
    def size(self) -> int:
        """The number of genes."""
        return len(self.bits) + len(self.picks) + len(self.reals)

    @property
    def names(self) -> tuple[str, ...]:
        """What the genes are called, in the order of a genome; no two alike."""
        genes: tuple[g.Gene, ...] = (*self.bits, *self.picks, *self.reals)
        return tuple(gene.name for gene in genes)

    @property
    def digest(self) -> str:
        """Equal for equal spaces: of the plan without its `search` block, and the layers."""
        text = format_plan(self.plan.model_copy(update={"search": None}))
        return hashlib.sha256(f"{self.layers}\n{text}".encode()).hexdigest()


def space_of(plan: p.Plan, layers: int, tied: Collection[str] = ()) -> Space:
    """The space of an open plan without faults. Raises SpaceError if it leaves nothing open.

    `tied` are the models whose embedding and head are one tensor.
    """
    said = plan
    plan = searched(plan, layers, tied)
    found = Collecting(plan, layers)
    if not found.sites:
        raise SpaceError("the plan leaves nothing open, so there is nothing to search")
    genes = found.genes()
    return Space(
        plan,
        layers,
        genes.bits,
        genes.picks,
        genes.reals,
        found.sites,
        {site.place: found.numbers(site.place) for site in found.sites},
        table_of(genes),
        found.keeper,
        partial(spread_alike, said, layers, tied),
    )
