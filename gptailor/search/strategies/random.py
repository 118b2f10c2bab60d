"""Random search: what every other strategy has to beat."""

from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from gptailor.search.space.table import Table
from gptailor.search.strategies.hash_random import Key, drawn, seeds
from gptailor.search.strategies.strategy import DRAWN_PER_ASKED, Proposal, State, Strategy, newest


@final
@dataclass(frozen=True)
class Random(Strategy):
    """Genomes drawn from the whole space, each set and each option alike; new ones first."""

    name: str = "random"
    population: int = 4

    def _ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        (seed,) = seeds(key, 1)
        found = drawn(table, seed, DRAWN_PER_ASKED * self.population)
        return newest(state.archive, found, self.population), jnp.ones(self.population), state.own
