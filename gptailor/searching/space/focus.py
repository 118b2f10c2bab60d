"""A space's table for some of its choices alone: its recipes with nothing dropped, or its cuts.

Both tables keep all genes of the space, so that their genomes are genomes of the space. A gene
outside of the focus is never active: it has its default, which a strategy doesn't change.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from gptailor.plan.sites import Role
from gptailor.searching.space.genome import Active, Gene, Genome
from gptailor.searching.space.roles import CUT_ROLES, REPAIR_ROLES
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical


def recipe_table(space: Space) -> Table:
    """Return the table of the recipes with nothing dropped: no bit of a drop is on.

    Each number is paired with itself, so that a linear model can have its least loss inside of an
    interval, as merges do.
    """
    table = space.table
    features = len(table.at_features)
    numbers = np.arange(features - len(table.at_reals), features)
    squares = np.stack([numbers, numbers], axis=1).astype(table.pairs.dtype)
    genes = _with_roles(space, CUT_ROLES | REPAIR_ROLES)
    none = np.zeros_like(table.low)
    windows = np.isin(table.option_pick, np.flatnonzero(genes.picks))
    defaults = table.defaults._replace(bits=table.defaults.bits & ~genes.bits)
    return _frozen(table, genes, defaults)._replace(
        low=none,
        high=none,
        ranged=table.ranged[:0],
        first=np.where(windows, 1, table.first).astype(table.first.dtype),
        last=np.where(windows, 0, table.last).astype(table.last.dtype),
        pairs=np.concatenate([table.pairs, squares]),
        limits=None,
    )


def cut_table(space: Space, recipe: Genome) -> Table:
    """Return the table of the cuts, and of their repair, of plans with the recipe of a genome."""
    genes = Active(*(~free for free in _with_roles(space, CUT_ROLES | REPAIR_ROLES)))
    return _frozen(space.table, genes, Genome(*map(np.where, genes, recipe, space.table.defaults)))


def with_recipe(space: Space, genome: Genome, recipe: Genome) -> Genome:
    """Return a genome's cut with the recipe of another genome."""
    own = _with_roles(space, CUT_ROLES | REPAIR_ROLES)
    return Genome(*map(np.where, own, genome, recipe))


def has_recipe(space: Space, genome: Genome, recipe: Genome) -> bool:
    """Return whether the layers that a genome keeps have the recipe of another genome."""
    both = (canonical(space.table, g) for g in (genome, with_recipe(space, genome, recipe)))
    return all(np.array_equal(*genes) for genes in zip(*both, strict=True))


def _with_roles(space: Space, roles: frozenset[Role]) -> Active:
    """Return a mask of the genes with these roles."""

    def mask(genes: Sequence[Gene]) -> Bool[ndarray, " genes"]:
        return np.array([gene.subject.used_as in roles for gene in genes], np.bool_)

    return Active(mask(space.bits), mask(space.picks), mask(space.reals))


def _frozen(table: Table, genes: Active, defaults: Genome) -> Table:
    """Return the table with these genes never active, and other defaults."""
    truths = table.truths.copy()
    truths[np.flatnonzero(np.concatenate(genes))] = -1
    return table._replace(truths=truths, defaults=defaults)
