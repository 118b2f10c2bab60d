"""Random search: the baseline of all other strategies."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key
from gptailor.searching.space.table import Table, allowed, sample
from gptailor.searching.strategies.moves import some_rows
from gptailor.searching.strategies.strategy import (
    Archive,
    Proposal,
    State,
    Strategy,
    fingerprints,
    genes,
)

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


def newest(table: Table, archive: Archive, drawn: Genome, many: int) -> Genome:
    """Return so many of the drawn genomes.

    Known and repeated ones, and those beyond the table's limits, come last.
    """
    marks = fingerprints(genes(drawn))
    stale = np.isin(marks, fingerprints(genes(archive.genomes))) | ~allowed(table, drawn)
    stale |= ~np.isin(np.arange(len(marks)), np.unique(marks, return_index=True)[1])
    return some_rows(drawn, np.argsort(stale, kind="stable")[:many])
