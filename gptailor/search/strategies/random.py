"""Random search: what every other strategy has to beat."""

from dataclasses import dataclass
from functools import partial
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table
from gptailor.search.strategies.hash_random import Key, drawn, seeds
from gptailor.search.strategies.moves import some_rows
from gptailor.search.strategies.strategy import Proposal, State, empty, fresh_first, store

_DRAWN_PER_ASKED = 8
"""Genomes drawn for each one asked, so that it is new where new ones are rare."""


@final
@dataclass(frozen=True)
class Random:
    """Genomes drawn from the whole space, each set and each option alike."""

    name: str = "random"
    population: int = 4

    @partial(jax.jit, static_argnums=(0, 2, 4))
    def init(self, table: Table, capacity: int, key: Key, objectives: int = 1) -> State:
        """An empty archive."""
        return State(empty(table, capacity, objectives))

    @partial(jax.jit, static_argnums=0)
    def ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """New ones, as they were drawn."""
        (seed,) = seeds(key, 1)
        found = drawn(table, seed, _DRAWN_PER_ASKED * self.population)
        order = fresh_first(state.archive, found)[: self.population]
        return some_rows(found, order), jnp.ones(self.population), state

    @partial(jax.jit, static_argnums=0)
    def tell(
        self,
        table: Table,
        state: State,
        population: Genome,
        values: Float[Array, "n m"],
        fidelity: Float[Array, " n"],
    ) -> State:
        """Into the archive."""
        return state._replace(archive=store(state.archive, population, values, fidelity))
