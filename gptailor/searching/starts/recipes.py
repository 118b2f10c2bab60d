"""Recipes of a space with repaired cuts: they are compared with nothing dropped.

A repaired loss is nearly the loss of the recipe uncut plus the price of the cut, since a plan is
healed towards itself with nothing dropped. Bare cuts hide the first term: they differ by more than
recipes do. So the best recipe is found first, and cuts are searched with that recipe alone.

Both searches have a table for some of the space's choices alone. It keeps all genes of the space,
so that its genomes are genomes of the space. A gene of the other choices is never active: it has
its default, which a strategy doesn't change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from gptailor.searching.run.asking import draw_weights, told
from gptailor.searching.run.origin import Composition
from gptailor.searching.run.schedule import Start
from gptailor.searching.run.trials import as_numpy
from gptailor.searching.space.genome import Active, Gene, Genome
from gptailor.searching.space.hash_random import folded, key_of, keys_of
from gptailor.searching.space.roles import CUT_ROLES, REPAIR_ROLES
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical
from gptailor.searching.starts.compositions import BASE_ALONE, composed
from gptailor.searching.starts.cuts import Cut

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy

_RECIPES = 1_000
"""The purpose of the randomness of recipes, apart from the purposes of a search's other asks."""


@final
@dataclass(frozen=True, eq=False)
class Recipes:
    """Recipes of a space as genomes with nothing dropped, and a strategy's requests for them.

    `room` is the number of evaluations at full fidelity that all recipes may cost together, and
    `asks` the part of it for recipes that the strategy asks for.
    `rivals` is the number of plans that are repaired for comparison.
    """

    space: Space
    strategy: "Strategy"
    room: float
    asks: float
    rivals: int
    seed: int = 0

    @cached_property
    def table(self) -> Table:
        """Return the table of the recipes."""
        return recipe_table(self.space)

    def of(self, composition: Composition) -> Genome:
        """Return the recipe that is nearest to a composition."""
        return composed(self.space, composition, (), self.table)

    def ask(self, number: int, results: Sequence[Start]) -> list[Genome]:
        """Return the strategy's next recipes by the results of all others at full fidelity.

        They depend on the results, on the number of the ask and on the seed alone.
        """
        key = folded(folded(key_of(self.seed), _RECIPES), number)
        first, weighing, asking = keys_of(key, 3)
        losses = np.array([result.losses for result in results], np.float32)
        state = self.strategy.init(self.table, len(results), first, losses.shape[1])
        shares = np.array([result.share for result in results], np.float32)
        state = told(
            self.strategy, self.table, state, [each.genome for each in results], losses, shares
        )
        weights = draw_weights(weighing, losses.shape[1])
        population, _, _ = self.strategy.ask(self.table, state, asking, weights)
        return [Genome(*genes) for genes in zip(*as_numpy(population), strict=True)]

    def with_cut(self, recipe: Genome, cut: Cut) -> Genome:
        """Return the genome of a recipe with a cut."""
        base = composed(self.space, BASE_ALONE, cut)
        return canonical(cut_table(self.space, recipe), with_recipe(self.space, base, recipe))


# ------------------------------------------------------------------------------------- the tables


def recipe_table(space: Space) -> Table:
    """Return the table of the recipes with nothing dropped: no bit of a drop is on.

    Each number is paired with itself, so that a linear model can have its least loss inside of an
    interval, as merges do.
    """
    table = space.table
    features = len(table.at_features)
    numbers = np.arange(features - len(table.at_reals), features)
    squares = np.stack([numbers, numbers], axis=1).astype(table.pairs.dtype)
    genes = _cut_genes(space)
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
    genes = Active(*(~free for free in _cut_genes(space)))
    return _frozen(space.table, genes, Genome(*map(np.where, genes, recipe, space.table.defaults)))


def with_recipe(space: Space, genome: Genome, recipe: Genome) -> Genome:
    """Return a genome's cut with the recipe of another genome."""
    own = _cut_genes(space)
    return Genome(*map(np.where, own, genome, recipe))


def has_recipe(space: Space, genome: Genome, recipe: Genome) -> bool:
    """Return whether the layers that a genome keeps have the recipe of another genome."""
    both = (canonical(space.table, g) for g in (genome, with_recipe(space, genome, recipe)))
    return all(np.array_equal(*genes) for genes in zip(*both, strict=True))


def _cut_genes(space: Space) -> Active:
    """Return a mask of the genes that decide the cut, and its repair."""
    kinds: tuple[Sequence[Gene], ...] = (space.bits, space.picks, space.reals)
    roles = CUT_ROLES | REPAIR_ROLES
    return Active(
        *(np.array([gene.subject.used_as in roles for gene in kind], np.bool_) for kind in kinds)
    )


def _frozen(table: Table, genes: Active, defaults: Genome) -> Table:
    """Return the table with these genes never active, and other defaults."""
    truths = table.truths.copy()
    truths[np.flatnonzero(np.concatenate(genes))] = -1
    return table._replace(truths=truths, defaults=defaults)
