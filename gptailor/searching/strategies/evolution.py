"""Local mutation of an elite, selected in stages of growing fidelity.

As in EvoPress (arXiv 2410.14649), many offspring are tried on few samples. The best offspring are
tried on more samples, and the last offspring on all samples.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, keys_of
from gptailor.searching.space.table import Table, canonical, sample
from gptailor.searching.strategies import moves as m
from gptailor.searching.strategies.strategy import (
    DRAWN_PER_ASKED,
    Archive,
    Proposal,
    State,
    Strategy,
    best_in_full,
    newest,
    scalarise,
    successive_halving,
)

_WANTED = 0.2
"""The target share of better offspring. Steps grow above it and shrink below it."""


@final
class Steps(NamedTuple):
    """The neighbourhood that moves use, and the mean number of moves beyond the first."""

    around: m.Neighbourhood
    more: float


@final
@dataclass(frozen=True)
class Evolution(Strategy):
    """An elite's offspring, on the first of `shares` of the samples, then on each next share."""

    name: str = "evolution"
    population: int = 4
    elite: int = 4
    shares: tuple[float, ...] = (0.25, 1.0)
    rise: int = 3
    moves: int = 4
    learning: float = 0.3

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Steps:
        return Steps(m.neighbourhood(table), 0.5)

    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Return trials that rise a stage, then offspring on the lowest share."""
        archive, own = state
        fitness = scalarise(archive.values, weights)
        offspring = self._offspring(table, archive, own, fitness, key)
        return *successive_halving(archive, fitness, offspring, self.shares, self.rise), own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Steps:
        """Adapt the steps to the number of genomes that beat all trials at their fidelity."""
        own, former = state.own, state.archive
        total, before = new.values.sum(axis=-1), former.values.sum(axis=-1)
        peers = (former.fidelity[None, :] == new.fidelity[:, None]) & np.isfinite(before)[None, :]
        best = np.min(np.where(peers, before[None, :], np.inf), axis=1, initial=np.inf)
        better = np.where(peers.any(axis=1), (total < best) - _WANTED, 0.0).sum()
        more = np.clip(own.more * np.exp(self.learning * better), 0.05, self.moves - 1.0)
        return Steps(own.around, float(more))

    def _offspring(
        self, table: Table, archive: Archive, own: Steps, fitness: Float[ndarray, " n"], key: Key
    ) -> Genome:
        """Return new offspring of the elite at the highest fidelity so far.

        Random genomes fill an elite that is too small.
        """
        random, count, *move = keys_of(key, 4)
        fresh = sample(table, random, self.elite)
        best = best_in_full(archive, fitness)[: self.elite]
        fillers = m.some_rows(fresh, np.arange(len(best), self.elite))
        parents = m.joined_populations(m.some_rows(archive.genomes, best), fillers)
        counts = m.step_counts(count, DRAWN_PER_ASKED * self.population, own.more)
        mutants = m.bred(table, own.around, parents, counts, (move[0], move[1]), self.moves)
        mutants = canonical(table, m.joined_populations(mutants, fresh))
        return newest(table, archive, mutants, self.population)
