"""The base class of strategies, with the archive of trials and the ask-and-tell interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int, UInt32
from numpy import ndarray

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, scrambled
from gptailor.searching.space.table import Table, allowed
from gptailor.searching.strategies.moves import joined_populations, some_rows

_RHO = 0.05
"""The share of the weighted sum in the fitness. It keeps each objective relevant."""

Proposal = tuple[Genome, Float[ndarray, " n"], Any]
"""Genomes, the share for each genome, and the next state, or the strategy's part of it."""


@final
class Archive(NamedTuple):
    """Told trials, at most `capacity`; NaN for a failure.

    `fidelity` is the share of all samples that a trial used, in (0, 1].
    """

    genomes: Genome
    values: Float[ndarray, "size m"]
    fidelity: Float[ndarray, " size"]
    capacity: int

    @property
    def size(self) -> int:
        """The number of trials."""
        return len(self.fidelity)


@final
class State(NamedTuple):
    """The state of a strategy: the archive, and the strategy's own part, maybe empty."""

    archive: Archive
    own: Any = ()


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to find the next genomes. It is pure: the same key and state give the same answer.

    `name` is the name in the registry. `population` is the number of genomes of an ask. Fitness is
    minimised. The algorithm is in `_ask`. A strategy with its own state has `_init` and `_tell`,
    too.
    """

    name: str
    population: int

    def init(
        self,
        table: Table,
        capacity: int,
        key: Key,
        objectives: int = 1,
        prior: Float[ndarray, " layers"] | None = None,
    ) -> State:
        """Return the state before any trial, with room for `capacity` trials.

        `prior` are measurements of the layers. A layer with a greater value is worse to drop. The
        unit doesn't matter.
        """
        genomes = Genome(*(np.tile(gene, (0, 1)) for gene in table.defaults))
        archive = Archive(
            genomes, np.zeros((0, objectives), np.float32), np.zeros(0, np.float32), capacity
        )
        return State(archive, self._init(table, key, prior))

    def ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Return genomes to try and the share for each. They are canonical, and new if possible.

        `weights` are the weights of the objectives for this ask.
        """
        population, shares, own = self._ask(table, state, key, weights)
        return population, shares, state._replace(own=own)

    def tell(
        self,
        table: Table,
        state: State,
        population: Genome,
        values: Float[ndarray, "n m"],
        fidelity: Float[ndarray, " n"],
    ) -> State:
        """Return the state with more trials, from any source.

        A value that is not finite is a failure.
        """
        values = np.where(np.isfinite(values), values, np.nan)
        new = Archive(population, values, fidelity, len(values))
        archive = store(state.archive, new)
        return State(archive, self._tell(table, state, archive, new))

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Any:
        """Return the strategy's own state."""
        return ()

    @abstractmethod
    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Return genomes, the share for each genome, and the strategy's next own state."""

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Any:
        """Return the strategy's next own state.

        `archive` contains the `new` trials. The archive of `state` doesn't.
        """
        return state.own


def store(archive: Archive, new: Archive) -> Archive:
    """Return the archive with more trials.

    If the archive is full, a new trial replaces the worst trial.
    """
    values = np.concatenate([archive.values, new.values])
    total = np.where(np.isfinite(values), values, np.inf).sum(axis=1)  # a failure is the worst
    kept = np.arange(archive.size)
    for number in range(archive.size, len(total)):
        if len(kept) == archive.capacity:
            kept = np.delete(kept, np.argmax(total[kept]))
        kept = np.append(kept, number)
    genomes = some_rows(joined_populations(archive.genomes, new.genomes), kept)
    shares = np.concatenate([archive.fidelity, new.fidelity])
    return Archive(genomes, values[kept], shares[kept], archive.capacity)


def scalarise(
    values: Float[ndarray, "*n m"], weights: Float[ndarray, " m"]
) -> Float[ndarray, "*n"]:
    """Return max_j w_j v_j + _RHO Σ_j w_j v_j, ParEGO's augmented Chebyshev norm (Knowles, 2006).

    Values are minimised and have one scale. The result is NaN if an objective is not finite.
    """
    finite = np.isfinite(values).all(axis=-1)
    weighted = np.where(finite[..., None], values, 0.0) * weights
    fitness = weighted.max(axis=-1) + _RHO * weighted.sum(axis=-1)
    return np.where(finite, fitness, np.nan)


def best_in_full(archive: Archive, fitness: Float[ndarray, " n"]) -> Int[ndarray, " k"]:
    """Return the trials with a score at the highest fidelity of any score, the best first."""
    valid = np.isfinite(fitness)
    highest = np.max(archive.fidelity, where=valid, initial=0.0)
    full = np.flatnonzero(valid & (archive.fidelity >= highest))
    return np.asarray(full[np.argsort(fitness[full], kind="stable")])


def newest(table: Table, archive: Archive, drawn: Genome, many: int) -> Genome:
    """Return this many of the drawn genomes.

    Known and repeated ones, and genomes beyond the table's limits, come last.
    """
    marks = fingerprints(genes(drawn))
    stale = np.isin(marks, fingerprints(genes(archive.genomes))) | ~allowed(table, drawn)
    stale |= ~np.isin(np.arange(len(marks)), np.unique(marks, return_index=True)[1])
    return some_rows(drawn, np.argsort(stale, kind="stable")[:many])


def fingerprints(rows: Float[ndarray, "n k"]) -> UInt32[ndarray, " n"]:
    """Return a number for each row: equal for equal rows, and almost surely unequal otherwise."""
    columns = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    place = scrambled(np.arange(1, 1 + rows.shape[1], dtype=np.uint32))
    return np.asarray(scrambled(columns + place).sum(axis=-1, dtype=np.uint32))


def genes(population: Genome) -> Float[ndarray, "n k"]:
    """Return genomes as rows of numbers."""
    return np.concatenate([np.asarray(gene, np.float32) for gene in population], axis=-1)
