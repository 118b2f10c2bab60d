"""Random search: the baseline of all other strategies."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from gptailor.searching.space.hash_random import Key
from gptailor.searching.space.table import Table, sample
from gptailor.searching.strategies.strategy import Proposal, State, Strategy, newest

_DRAWN_PER_ASKED = 8
"""Genomes drawn for each asked genome. A large number finds rare new genomes."""


@final
@dataclass(frozen=True)
class Random(Strategy):
    """Genomes drawn from the whole space. Sets and options are uniform. New genomes come first."""

    name: str = "random"
    population: int = 4

    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        drawn = sample(table, key, _DRAWN_PER_ASKED * self.population)
        shares = np.ones(self.population, np.float32)
        return newest(table, state.archive, drawn, self.population), shares, state.own
