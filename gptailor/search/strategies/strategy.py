"""What strategies are: `Strategy` keeps the books of ask and tell, and has the archive."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table
from gptailor.search.strategies.hash_random import Key, scrambled
from gptailor.search.strategies.moves import some_rows, where

_RHO = 0.05
"""How much of the weighted sum is added, so that no objective is given away for nothing."""

DRAWN_PER_ASKED = 8
"""Genomes drawn for each one asked, so that it is new where new ones are rare."""

Proposal = tuple[Genome, Float[Array, " n"], Any]
"""Genomes, the share for each, and the state then: the whole, or what the strategy has of it."""


@final
class Archive(NamedTuple):
    """Told trials: the first `size` of `capacity` places, NaN for a failure and where empty.

    `fidelity` is the share of all samples that a trial used, in (0, 1].
    """

    genomes: Genome
    values: Float[Array, "capacity m"]
    fidelity: Float[Array, " capacity"]
    size: Int[Array, ""]


@final
class State(NamedTuple):
    """What a strategy knows: the archive, and a pytree of its own (maybe nothing)."""

    archive: Archive
    own: Any = ()


@dataclass(frozen=True)
class Strategy(ABC):
    """How the next genomes are found. Frozen data, so that `jax.jit` takes it as static.

    `name` is that in the registry, `population` how many genomes one ask gives. Fitness is
    minimised. The algorithm is in `_ask`, and in `_init` and `_tell` if it knows more than the
    archive.
    """

    name: str
    population: int

    @partial(jax.jit, static_argnums=(0, 2, 4))
    def init(self, table: Table, capacity: int, key: Key, objectives: int = 1) -> State:
        """The state before any trial; room for `capacity` of them."""
        genomes = jax.tree.map(lambda gene: jnp.tile(gene, (capacity, 1)), table.defaults)
        values = jnp.full((capacity, objectives), jnp.nan)
        archive = Archive(genomes, values, jnp.ones(capacity), jnp.zeros((), jnp.int32))
        return State(archive, self._init(table, key))

    @partial(jax.jit, static_argnums=0)
    def ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """Genomes to try, canonical and new where there are new ones, with the share for each.

        `weights` say how much each objective counts this time.
        """
        population, shares, own = self._ask(table, state, key, weights)
        return population, shares, state._replace(own=own)

    @partial(jax.jit, static_argnums=0)
    def tell(
        self,
        table: Table,
        state: State,
        population: Genome,
        values: Float[Array, "n m"],
        fidelity: Float[Array, " n"],
    ) -> State:
        """The state with trials more, whoever asked for them. What is not finite is a failure."""
        values = jnp.where(jnp.isfinite(values), values, jnp.nan)
        new = Archive(population, values, fidelity, jnp.int32(len(values)))
        archive = store(state.archive, new)
        return State(archive, self._tell(table, state, archive, new))

    def _init(self, table: Table, key: Key) -> Any:
        """What the strategy knows besides the archive."""
        return ()

    @abstractmethod
    def _ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """Genomes, the share for each, and what the strategy knows then besides the archive."""

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Any:
        """What the strategy knows then; `archive` has the `new` trials, that of `state` doesn't."""
        return state.own


def store(archive: Archive, new: Archive) -> Archive:
    """The archive with trials more. When it is full, each takes the place of the worst."""

    def one(held: Archive, trial: tuple[Any, ...]) -> tuple[Archive, None]:
        total = jnp.sum(held.values, axis=-1)
        worst = jnp.argmax(jnp.where(jnp.isfinite(total), total, jnp.inf))  # or a failure
        at = jnp.where(held.size < len(held.fidelity), held.size, worst)
        genomes, values, shares = jax.tree.map(
            lambda rows, row: rows.at[at].set(row), held[:3], trial
        )
        size = jnp.minimum(held.size + 1, len(held.fidelity))
        return Archive(genomes, values, shares, size), None

    return jax.lax.scan(one, archive, new[:3])[0]


def scalarise(
    values: Float[Array | np.ndarray, "*n m"], weights: Float[Array | np.ndarray, " m"]
) -> Float[Array, "*n"]:
    """max_j w_j v_j + _RHO Σ_j w_j v_j: the augmented Chebyshev norm of ParEGO (Knowles, 2006).

    Values are minimised and of one scale. What is NaN or infinite in one objective is NaN.
    """
    weighted = jnp.asarray(values) * jnp.asarray(weights)
    fitness = jnp.max(weighted, axis=-1) + _RHO * jnp.sum(weighted, axis=-1)
    return jnp.where(jnp.all(jnp.isfinite(values), axis=-1), fitness, jnp.nan)


def told(archive: Archive) -> Bool[Array, " capacity"]:
    """Which places hold a trial."""
    return jnp.arange(len(archive.fidelity)) < archive.size


def fingerprints(rows: Float[Array, "n k"]) -> UInt32[Array, " n"]:
    """A number a row: the same for the same row, and almost surely not for another."""
    columns = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    place = scrambled(jnp.arange(1, 1 + rows.shape[1], dtype=jnp.uint32))
    return jnp.sum(scrambled(columns + place), axis=-1, dtype=jnp.uint32)


def genes(population: Genome) -> Float[Array, "n k"]:
    """Genomes as rows of numbers."""
    return jnp.concatenate([jnp.asarray(gene, jnp.float32) for gene in population], axis=-1)


def known(archive: Archive, population: Genome) -> Bool[Array, " n"]:
    """Which canonical genomes the archive holds already."""
    same = fingerprints(genes(population))[:, None] == fingerprints(genes(archive.genomes))[None, :]
    return jnp.any(same & told(archive)[None, :], axis=-1)


def newest(archive: Archive, population: Genome, many: int) -> Genome:
    """So many of canonical genomes: those that are new, then the archive's and repeats."""
    found = fingerprints(genes(population))
    earlier = jnp.tril(found[:, None] == found[None, :], -1)
    stale = known(archive, population) | jnp.any(earlier, axis=1)
    return some_rows(population, jnp.argsort(stale, stable=True)[:many])


_ROUNDING = 0.02
"""What rounding to whole samples takes of a share, at most."""


def successive_halving(
    archive: Archive,
    found: Float[Array, " capacity"],
    offspring: Genome,
    shares: tuple[float, ...],
    rise: int,
) -> tuple[Genome, Float[Array, " n"]]:
    """What an ask gives: first those that go up a stage, then offspring on the lowest share.

    `found` is the fitness of the archive's trials. Of each stage one in `rise` goes up. A trial is
    at the highest stage whose share it reaches: a search may have no sample so small.
    """
    many = len(offspring.bits)
    above, stage = _rising(archive, found, shares, rise)
    ranks = jnp.argsort(-stage, stable=True)[:many]
    ranks = jnp.resize(ranks, (many,))
    goes = (stage[ranks] > 0) & (jnp.arange(many) < len(stage))
    asked = jnp.where(goes, above[ranks], shares[0])
    return where(goes, some_rows(archive.genomes, ranks), offspring), asked


def _rising(
    archive: Archive, found: Float[Array, " n"], shares: tuple[float, ...], rise: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The share that each trial is to be tried on next, and the stage that it goes to; or 0."""
    above, stage = jnp.ones(len(found)), jnp.zeros(len(found), jnp.int32)
    known = fingerprints(genes(archive.genomes))
    same = (known[:, None] == known[None, :]) & told(archive)[None, :]
    highest = jnp.max(jnp.where(same, archive.fidelity[None, :], 0.0), axis=1)
    for number, (share, higher) in enumerate(pairwise(shares)):
        reaches = (archive.fidelity >= share - _ROUNDING) & (archive.fidelity < higher - _ROUNDING)
        there = jnp.isfinite(found) & reaches
        rank = jnp.sum(there[None, :] & (found[None, :] < found[:, None]), axis=1)
        good = there & (rank < jnp.sum(there) // rise) & (highest <= archive.fidelity)
        above, stage = jnp.where(good, higher, above), jnp.where(good, number + 1, stage)
    return above, stage
