"""Local mutation of an elite, selected in stages of growing fidelity.

After EvoPress (arXiv 2410.14649): many offspring are tried on few samples, the best of them on
more, and the last ones on all.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, canonical
from gptailor.search.strategies import moves as m
from gptailor.search.strategies.hash_random import Key, drawn, seeds
from gptailor.search.strategies.strategy import (
    DRAWN_PER_ASKED,
    Archive,
    Proposal,
    State,
    Strategy,
    newest,
    scalarise,
    successive_halving,
)

_WANTED = 0.2
"""Of how many offspring improve, steps grow if it is more and shrink if it is less."""


@final
class Steps(NamedTuple):
    """What moves look at, and the mean number of moves beyond the first."""

    around: m.Neighbourhood
    more: Float[Array, ""]


@final
@dataclass(frozen=True)
class Evolution(Strategy):
    """An elite's offspring, on the first of `shares` of the samples, then on each that follows."""

    name: str = "evolution"
    population: int = 4
    elite: int = 4
    shares: tuple[float, ...] = (0.25, 1.0)
    rise: int = 3
    moves: int = 4
    learning: float = 0.3

    def _init(self, table: Table, key: Key) -> Steps:
        return Steps(m.neighbourhood(table), jnp.asarray(0.5))

    def _ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """First those that go up a stage, then offspring on the lowest."""
        archive, own = state
        found = scalarise(archive.values, weights)
        offspring = self._offspring(table, archive, own, found, key)
        return *successive_halving(archive, found, offspring, self.shares, self.rise), own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Steps:
        """Steps adapt by how many are better than all at their fidelity."""
        own, former = state.own, state.archive
        total, before = jnp.sum(new.values, axis=-1), jnp.sum(former.values, axis=-1)
        peers = (former.fidelity[None, :] == new.fidelity[:, None]) & jnp.isfinite(before)[None, :]
        best = jnp.min(jnp.where(peers, before[None, :], jnp.inf), axis=1)
        counts = jnp.any(peers, axis=1)
        better = jnp.where(counts, (total < best) - _WANTED, 0.0)
        more = jnp.clip(own.more * jnp.exp(self.learning * jnp.sum(better)), 0.05, self.moves - 1.0)
        return Steps(own.around, more)

    def _offspring(
        self, table: Table, archive: Archive, own: Steps, found: Float[Array, " n"], key: Key
    ) -> Genome:
        """New ones of the elite at the highest fidelity there is; of random genomes without one."""
        random, count, *move = seeds(key, 4)
        valid = jnp.isfinite(found)
        full = valid & (archive.fidelity >= jnp.max(jnp.where(valid, archive.fidelity, 0.0)))
        order = jnp.argsort(jnp.where(full, found, jnp.inf))
        order = jnp.resize(order[: self.elite], (self.elite,))
        fresh = drawn(table, random, self.elite)
        parents = m.where(full[order], m.some_rows(archive.genomes, order), fresh)
        often = m.step_counts(count, DRAWN_PER_ASKED * self.population, own.more)
        mutants = m.bred(table, own.around, parents, often, (move[0], move[1]), self.moves)
        mutants = jax.vmap(partial(canonical, table))(m.joined_populations(mutants, fresh))
        return newest(archive, mutants, self.population)
