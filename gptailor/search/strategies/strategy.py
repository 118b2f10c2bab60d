"""What strategies are: `Strategy` keeps the books of ask and tell, and has the archive."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from numpy import ndarray

from gptailor.search.space.genome import Genome
from gptailor.search.space.hash_random import Key, scrambled
from gptailor.search.space.table import Table, allowed
from gptailor.search.strategies.moves import joined_populations, some_rows, where

_RHO = 0.05
"""How much of the weighted sum is added, so that no objective is given away for nothing."""

DRAWN_PER_ASKED = 8
"""Genomes drawn for each one asked, so that it is new where new ones are rare."""

Proposal = tuple[Genome, Float[ndarray, " n"], Any]
"""Genomes, the share for each, and the state then: the whole, or what the strategy has of it."""


@final
class Archive(NamedTuple):
    """Told trials, `capacity` at most; NaN for a failure.

    `fidelity` is the share of all samples that a trial used, in (0, 1].
    """

    genomes: Genome
    values: Float[ndarray, "size m"]
    fidelity: Float[ndarray, " size"]
    capacity: int

    @property
    def size(self) -> int:
        """How many trials there are."""
        return len(self.fidelity)


@final
class State(NamedTuple):
    """What a strategy knows: the archive, and something of its own (maybe nothing)."""

    archive: Archive
    own: Any = ()


@dataclass(frozen=True)
class Strategy(ABC):
    """How the next genomes are found. Pure: the same key and state give the same answer.

    `name` is that in the registry, `population` how many genomes one ask gives. Fitness is
    minimised. The algorithm is in `_ask`, and in `_init` and `_tell` if it knows more than the
    archive.
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
        """The state before any trial; room for `capacity` of them.

        `prior` is what was measured of the layers: the more, the worse it is if that one leaves.
        Its unit is of no account.
        """
        genomes = Genome(*(np.tile(gene, (0, 1)) for gene in table.defaults))
        archive = Archive(
            genomes, np.zeros((0, objectives), np.float32), np.zeros(0, np.float32), capacity
        )
        return State(archive, self._init(table, key, prior))

    def ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Genomes to try, canonical and new where there are new ones, with the share for each.

        `weights` say how much each objective counts this time.
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
        """The state with trials more, whoever asked for them. What is not finite is a failure."""
        values = np.where(np.isfinite(values), values, np.nan)
        new = Archive(population, values, fidelity, len(values))
        archive = store(state.archive, new)
        return State(archive, self._tell(table, state, archive, new))

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Any:
        """What the strategy knows besides the archive."""
        return ()

    @abstractmethod
    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Genomes, the share for each, and what the strategy knows then besides the archive."""

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Any:
        """What the strategy knows then; `archive` has the `new` trials, that of `state` doesn't."""
        return state.own


def store(archive: Archive, new: Archive) -> Archive:
    """The archive with trials more. Where there are too many, the worst make room, not the last."""
    values = np.concatenate([archive.values, new.values])
    total = np.where(np.isfinite(values), values, np.inf).sum(axis=1)  # a failure is the worst
    kept = np.arange(archive.size)
    for one in range(archive.size, len(total)):
        if len(kept) == archive.capacity:
            kept = np.delete(kept, np.argmax(total[kept]))
        kept = np.append(kept, one)
    genomes = some_rows(joined_populations(archive.genomes, new.genomes), kept)
    shares = np.concatenate([archive.fidelity, new.fidelity])
    return Archive(genomes, values[kept], shares[kept], archive.capacity)


def scalarise(
    values: Float[ndarray, "*n m"], weights: Float[ndarray, " m"]
) -> Float[ndarray, "*n"]:
    """max_j w_j v_j + _RHO Σ_j w_j v_j: the augmented Chebyshev norm of ParEGO (Knowles, 2006).

    Values are minimised and of one scale. What is NaN or infinite in one objective is NaN.
    """
    there = np.isfinite(values).all(axis=-1)
    weighted = np.where(there[..., None], values, 0.0) * weights
    fitness = weighted.max(axis=-1) + _RHO * weighted.sum(axis=-1)
    return np.where(there, fitness, np.nan)


def fingerprints(rows: Float[ndarray, "n k"]) -> UInt32[ndarray, " n"]:
    """A number a row: the same for the same row, and almost surely not for another."""
    columns = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    place = scrambled(np.arange(1, 1 + rows.shape[1], dtype=np.uint32))
    found: ndarray = scrambled(columns + place).sum(axis=-1, dtype=np.uint32)
    return found


def genes(population: Genome) -> Float[ndarray, "n k"]:
    """Genomes as rows of numbers."""
    return np.concatenate([np.asarray(gene, np.float32) for gene in population], axis=-1)


def known(archive: Archive, population: Genome) -> Bool[ndarray, " n"]:
    """Which canonical genomes the archive holds already."""
    return np.isin(fingerprints(genes(population)), fingerprints(genes(archive.genomes)))


def newest(table: Table, archive: Archive, population: Genome, many: int) -> Genome:
    """So many of canonical genomes: those that are new, then the archive's and repeats.

    Those beyond the table's limits come last, too.
    """
    found = fingerprints(genes(population))
    stale = known(archive, population) | ~allowed(table, population)
    stale |= ~np.isin(np.arange(len(found)), np.unique(found, return_index=True)[1])
    return some_rows(population, np.argsort(stale, kind="stable")[:many])


_ROUNDING = 0.02
"""What rounding to whole samples takes of a share, at most."""


def successive_halving(
    archive: Archive,
    found: Float[ndarray, " size"],
    offspring: Genome,
    shares: tuple[float, ...],
    rise: int,
) -> tuple[Genome, Float[ndarray, " n"]]:
    """What an ask gives: first those that go up a stage, then offspring on the lowest share.

    `found` is the fitness of the archive's trials. Of each stage one in `rise` goes up. A trial is
    at the highest stage whose share it reaches: a search may have no sample so small.
    """
    asked = np.full(len(offspring.bits), shares[0], np.float32)
    above, stage = _rising(archive, found, shares, rise)
    rising = np.argsort(-stage, kind="stable")[: np.count_nonzero(stage)][: len(asked)]
    if not len(rising):
        return offspring, asked
    ranks = np.resize(rising, len(asked))
    goes = np.arange(len(asked)) < len(rising)
    asked = np.where(goes, above[ranks], asked)
    return where(goes, some_rows(archive.genomes, ranks), offspring), asked


def _rising(
    archive: Archive, found: Float[ndarray, " n"], shares: tuple[float, ...], rise: int
) -> tuple[Float[ndarray, " n"], Int[ndarray, " n"]]:
    """The share that each trial is to be tried on next, and the stage that it goes to; or 0."""
    above, stage = np.ones(len(found), np.float32), np.zeros(len(found), np.int32)
    marks = fingerprints(genes(archive.genomes))
    same = marks[:, None] == marks[None, :]
    highest = np.max(np.where(same, archive.fidelity[None, :], 0.0), axis=1, initial=0.0)
    for number, (share, higher) in enumerate(pairwise(shares)):
        reaches = (archive.fidelity >= share - _ROUNDING) & (archive.fidelity < higher - _ROUNDING)
        there = np.isfinite(found) & reaches
        rank = (there[None, :] & (found[None, :] < found[:, None])).sum(axis=1)
        good = there & (rank < there.sum() // rise) & (highest <= archive.fidelity)
        above[good], stage[good] = higher, number + 1
    return above, stage
