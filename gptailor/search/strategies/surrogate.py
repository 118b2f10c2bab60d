"""The strategy that learns: draws of a linear model, each minimised over many small changes.

For each genome of an ask, coefficients are drawn from the posterior (Thompson, 1933), and mutants
of the best trials are screened by them, thousands for each ask. So what is uncertain is tried as
often as it may be the best.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, canonical, features
from gptailor.search.strategies.hash_random import Key, Seed, drawn, seeds
from gptailor.search.strategies.moves import (
    Neighbourhood,
    bred,
    joined_populations,
    neighbourhood,
    some_rows,
    step_counts,
    where,
)
from gptailor.search.strategies.posterior import (
    Coefficients,
    Observations,
    Sharing,
    draw,
    products,
    sharing,
)
from gptailor.search.strategies.strategy import (
    Archive,
    Proposal,
    State,
    empty,
    fingerprints,
    fitness,
    staged,
    store,
    targets,
    told,
)

FRESH = 16
"""For so many mutants there is one random genome."""
MORE = 1.0
"""Moves of a mutant beyond the first, in the mean."""
TURNS = 32
"""Parents that take turns, the first ones of the elite more than once."""

Marks = UInt32[Array, " c"]


class Known(NamedTuple):
    """What a surrogate works out once for a table."""

    around: Neighbourhood
    shared: Sharing


@final
@dataclass(frozen=True)
class Surrogate:
    """A linear Bayesian model with terms of neighbours, and Thompson draws.

    `mutants` of the `elite` best trials are screened, each of up to `moves` moves. Genome i of an
    ask is by a draw whose deviation from the mean is times `heats[i]`. It is tried on the first of
    `shares` of the samples, and of those the best one in `rise` on the next.
    """

    name: str = "surrogate"
    population: int = 4
    mutants: int = 1024
    elite: int = 12
    moves: int = 1
    heats: tuple[float, ...] = (0.0, 0.5, 1.0, 1.0)
    shares: tuple[float, ...] = (1.0,)
    rise: int = 3

    @partial(jax.jit, static_argnums=(0, 2, 4))
    def init(self, table: Table, capacity: int, key: Key, objectives: int = 1) -> State:
        """An empty archive, and what the model shares."""
        own = Known(neighbourhood(table), sharing(table))
        return State(empty(table, capacity, objectives), own)

    @partial(jax.jit, static_argnums=0)
    def ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """One genome for each draw: the best of its pool that is new."""
        drawing, random, *breeding = seeds(key, 6)
        archive, own = state
        effects = jax.vmap(partial(features, table))(archive.genomes)
        seen = _seen(table, archive, effects, weights)
        heats = jnp.resize(jnp.array(self.heats), (self.population,))
        by = draw(seen, own.shared, jnp.concatenate([jnp.zeros(1), heats]), drawing)
        expected = _scores(table, effects, by)[:, 0]
        elite = self._elite(table, archive, expected, weights, random)
        pool = self._bred(table, own.around, elite, breeding)
        taking = jax.vmap(partial(features, table))(pool)
        found, held = fingerprints(taking), fingerprints(effects)
        stale = jnp.any((found[:, None] == held[None, :]) & told(archive)[None, :], axis=1)
        chosen = some_rows(pool, _picked(_scores(table, taking, by)[:, 1:], stale, found))
        asked = jax.vmap(partial(canonical, table))(chosen)
        return *staged(archive, fitness(archive, weights), asked, self.shares, self.rise), state

    @partial(jax.jit, static_argnums=0)
    def tell(
        self,
        table: Table,
        state: State,
        population: Genome,
        values: Float[Array, "n m"],
        fidelity: Float[Array, " n"],
    ) -> State:
        """Into the archive; the model is fitted when it is asked."""
        return state._replace(archive=store(state.archive, population, values, fidelity))

    def _elite(
        self,
        table: Table,
        archive: Archive,
        expected: Float[Array, " capacity"],
        weights: Float[Array, " m"],
        seed: Seed,
    ) -> Genome:
        """The best by what was told and by what the model expects, in turns; random ones if few."""
        found = fitness(archive, weights)
        valid = jnp.isfinite(found)
        full = archive.fidelity >= jnp.max(jnp.where(valid, archive.fidelity, 0.0))
        orders = [
            jnp.argsort(jnp.where(mask, score, jnp.inf))[: -(-self.elite // 2)]
            for mask, score in ((valid & full, found), (valid, expected))
        ]
        order = jnp.stack(orders, axis=1).ravel()[: self.elite]
        few = jnp.arange(self.elite) // 2 >= jnp.sum(valid & full)
        random = drawn(table, seed, self.elite)
        return where(few | ~valid[order], random, some_rows(archive.genomes, order))

    def _bred(
        self, table: Table, around: Neighbourhood, elite: Genome, chance: list[Seed]
    ) -> Genome:
        """Mutants of the elite, more of its first ones, and some random genomes."""
        count, move, cross, fresh = chance
        turns = (jnp.arange(TURNS) + 0.5) / TURNS
        parents = some_rows(elite, jnp.floor(self.elite * turns**2).astype(jnp.int32))
        often = step_counts(count, self.mutants, MORE)
        mutants = bred(table, around, parents, often, (move, cross), self.moves)
        return joined_populations(mutants, drawn(table, fresh, self.mutants // FRESH))


def _seen(
    table: Table, archive: Archive, effects: Float[Array, "n f"], weights: Float[Array, " m"]
) -> Observations:
    """The archive as the model sees it."""
    there = told(archive)
    return Observations(
        _centred(effects, there),
        _centred(products(table, effects), there),
        jnp.where(there, 1 - archive.fidelity, 0.0),
        targets(fitness(archive, weights), archive.fidelity, there),
        1 / archive.fidelity,
        there,
    )


def _centred(rows: Float[Array, "n k"], there: Bool[Array, " n"]) -> Float[Array, "n k"]:
    """Without their mean; 0 where nothing is."""
    mean = jnp.sum(jnp.where(there[:, None], rows, 0.0), axis=0) / jnp.maximum(jnp.sum(there), 1)
    return jnp.where(there[:, None], rows - mean, 0.0)


def _scores(table: Table, effects: Float[Array, "n f"], by: Coefficients) -> Float[Array, "n d"]:
    """What each draw says of each genome, but for a constant."""
    return effects @ by.features + products(table, effects) @ by.pairs


def _picked(scores: Float[Array, "c d"], stale: Bool[Array, " c"], own: Marks) -> Int[Array, " d"]:
    """By each draw the best that is neither known nor picked already; if all are, any."""
    chosen = []
    for score in scores.T:
        best = jnp.argmin(jnp.where(stale, jnp.inf, score))
        stale |= own == own[best]
        chosen.append(best)
    return jnp.stack(chosen)
