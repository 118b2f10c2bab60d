"""Recipes of a space whose cuts are repaired: they are compared with nothing dropped.

A repaired loss is nearly the loss of the recipe uncut plus the price of the cut, since a plan is
healed towards itself with nothing dropped. Bare cuts hide the first term: they differ by more than
recipes do. So the best recipe is found first, and cuts are searched with that recipe alone.
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
from gptailor.searching.space.focus import cut_table, recipe_table, with_recipe
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import folded, key_of, keys_of
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical
from gptailor.searching.starts.compositions import BASE_ALONE, composed
from gptailor.searching.starts.cuts import Cut

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy

_RECIPES = 1_000
"""The purpose of the randomness of recipes, beside the purposes of a search's other asks."""


@final
@dataclass(frozen=True, eq=False)
class Recipes:
    """Recipes of a space as genomes with nothing dropped, and what a strategy asks of them.

    `room` is the number of evaluations at full fidelity that all recipes may cost together.
    `rivals` is the number of plans that are repaired for comparison.
    """

    space: Space
    strategy: "Strategy"
    room: float
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
