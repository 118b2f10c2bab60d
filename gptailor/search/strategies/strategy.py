"""Fitness as a model should see it: without heavy tails, finest near the best."""

from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptailor.search.run.objectives import scalarise
from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table
from gptailor.search.strategies.hash_random import Key, scrambled
from gptailor.search.strategies.moves import some_rows, where

WORST = 4.0
"""Where targets end: a cut that ruins a model is no more than very bad."""


def targets(
    found: Float[Array, " n"], fidelity: Float[Array, " n"], there: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Fitness with mean 0 and deviation 1 over what was told; 0 where nothing was.

    What is far behind the best counts by its logarithm, in units of the distance from the best to
    the better half's median. A failure counts as the worst.
    """
    valid = there & jnp.isfinite(found)
    best = jnp.min(jnp.where(valid, found, jnp.inf))
    behind = jnp.where(valid, found - best, jnp.nan)
    unit = jnp.nanquantile(behind, 0.5)
    behind = jnp.log1p(behind / jnp.maximum(jnp.nan_to_num(unit), 1e-9))
    worst = jnp.nan_to_num(jnp.nanmax(behind))
    behind = jnp.where(valid, behind, worst)
    many = jnp.maximum(jnp.sum(there), 1)
    mean = jnp.sum(jnp.where(there, behind, 0.0)) / many
    spread = jnp.sqrt(jnp.sum(jnp.where(there, (behind - mean) ** 2, 0.0)) / many)
    scaled = (behind - mean) / jnp.maximum(spread, 1e-6)
    return jnp.where(there, jnp.clip(scaled, -WORST, WORST), 0.0)


Proposal = tuple[Genome, Float[Array, " n"], "State"]


class Archive(NamedTuple):
    """Told trials: the first `size` of `capacity` places, NaN for a failure and where empty.

    `fidelity` is the share of all samples that a trial used, in (0, 1].
    """

    genomes: Genome
    values: Float[Array, "capacity m"]
    fidelity: Float[Array, " capacity"]
    size: Int[Array, ""]


class State(NamedTuple):
    """What a strategy knows: the archive, and a pytree of its own (maybe nothing)."""

    archive: Archive
    own: Any = ()


class Strategy(Protocol):
    """How the next genomes are found. Frozen data, so that `jax.jit` takes it as static."""

    @property
    def name(self) -> str:
        """Its name in the registry."""

    @property
    def population(self) -> int:
        """How many genomes one ask gives."""

    def init(self, table: Table, capacity: int, key: Key, objectives: int = 1) -> State:
        """The state before any trial; room for `capacity` of them."""

    def ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """Genomes to try, canonical and new where there are new ones, with the share for each.

        `weights` say how much each objective counts this time.
        """

    def tell(
        self,
        table: Table,
        state: State,
        population: Genome,
        values: Float[Array, "n m"],
        fidelity: Float[Array, " n"],
    ) -> State:
        """Take in what trials gave, whoever asked for them."""


def empty(table: Table, capacity: int, objectives: int) -> Archive:
    """An archive without trials."""
    return Archive(
        jax.tree.map(lambda gene: jnp.tile(jnp.asarray(gene), (capacity, 1)), table.defaults),
        jnp.full((capacity, objectives), jnp.nan),
        jnp.ones(capacity),
        jnp.zeros((), jnp.int32),
    )


def store(
    archive: Archive,
    population: Genome,
    values: Float[Array, "n m"],
    fidelity: Float[Array, " n"],
) -> Archive:
    """The archive with trials more. When it is full, each takes the place of the worst."""

    def one(held: Archive, trial: tuple[Any, ...]) -> tuple[Archive, None]:
        at = jnp.where(held.size < len(held.fidelity), held.size, _worst(held))
        genomes, found, shares = jax.tree.map(
            lambda old, new: old.at[at].set(new), (held.genomes, held.values, held.fidelity), trial
        )
        size = jnp.minimum(held.size + 1, len(held.fidelity))
        return Archive(genomes, found, shares, size), None

    return jax.lax.scan(one, archive, (population, values, fidelity))[0]


def _worst(archive: Archive) -> Int[Array, ""]:
    """A failure, or the trial with the highest sum."""
    total = jnp.sum(archive.values, axis=-1)
    return jnp.argmax(jnp.where(jnp.isfinite(total), total, jnp.inf))


def fitness(archive: Archive, weights: Float[Array, " m"]) -> Float[Array, " capacity"]:
    """One number a trial, NaN for failures and empty places."""
    return scalarise(archive.values, weights)


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


def fresh_first(archive: Archive, population: Genome) -> Int[Array, " n"]:
    """An order of canonical genomes: those that are new, then the archive's and repeats."""
    found = fingerprints(genes(population))
    earlier = jnp.tril(found[:, None] == found[None, :], -1)
    stale = known(archive, population) | jnp.any(earlier, axis=1)
    return jnp.argsort(stale, stable=True)


_ROUNDING = 0.02
"""What rounding to whole samples takes of a share, at most."""


def staged(
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
