"""Continuous strategies of evosax over a relaxed genome: peers to measure against.

evosax is no dependency: `evosax_peers` is empty where it is not installed. A relaxed genome has a
score for each bit and each option, and the reals; the highest scores win, and bits of no set are on
above 0.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped] # it has no stubs
from jaxtyping import Array, Float, UInt32

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, canonical, exact
from gptailor.search.strategies.distribution import highest
from gptailor.search.strategies.hash_random import Key
from gptailor.search.strategies.strategy import (
    Archive,
    Proposal,
    State,
    Strategy,
    fingerprints,
    genes,
)

ALGORITHMS = {"evosax CMA-ES": "CMA_ES", "evosax GA": "SimpleGA"}
WIDTH = 0.3
"""The deviation that a search begins with."""
FAILED = 1e9
"""What evosax is told of a failure."""


class Own(NamedTuple):
    """The algorithm's state, and what it asked for last."""

    inner: Any
    asked: Float[Array, "n k"]
    marks: UInt32[Array, " n"]
    best: Float[Array, ""]


@final
@dataclass(frozen=True)
class Relaxed(Strategy):
    """One algorithm of evosax. It learns from whole populations that it asked for.

    A better trial that comes from elsewhere (a starting plan) is where it goes on from.
    """

    name: str
    population: int = 16

    def _algorithm(self, table: Table) -> Any:
        module = importlib.import_module("evosax.algorithms")
        size = len(table.group) + len(table.option_pick) + len(table.at_reals)
        more = {"std_schedule": optax.constant_schedule(WIDTH)} if self._grows else {}
        return getattr(module, ALGORITHMS[self.name])(
            population_size=self.population, solution=jnp.zeros(size), **more
        )

    @property
    def _grows(self) -> bool:
        """Whether it holds a population, and no distribution."""
        return ALGORITHMS[self.name].endswith("GA")

    def _settings(self, algorithm: Any) -> Any:
        settings = algorithm.default_params
        return settings if self._grows else settings.replace(std_init=WIDTH)

    def _init(self, table: Table, key: Key) -> Own:
        """Around no score at all."""
        algorithm = self._algorithm(table)
        settings = self._settings(algorithm)
        asked = jnp.zeros((self.population, algorithm.num_dims))
        if self._grows:
            fitness = jnp.full(self.population, FAILED)
            inner = algorithm.init(key, asked, fitness, settings)
        else:
            inner = algorithm.init(key, asked[0], settings)
        return Own(inner, asked, jnp.zeros(self.population, jnp.uint32), jnp.asarray(jnp.inf))

    def _ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        """What the algorithm asks for."""
        algorithm = self._algorithm(table)
        asked, inner = algorithm.ask(key, state.own.inner, self._settings(algorithm))
        asked = jnp.nan_to_num(asked)
        population = jax.vmap(partial(_decoded, table))(asked)
        own = Own(inner, asked, fingerprints(genes(population)), state.own.best)
        return population, jnp.ones(self.population), own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Own:
        """To the algorithm if it is what was asked for."""
        population, total = new.genomes, jnp.sum(new.values, axis=-1)
        total = jnp.where(jnp.isfinite(total), total, FAILED)
        best = jnp.argmin(total)
        better = total[best] < state.own.best
        own: Own = state.own._replace(best=jnp.minimum(total[best], state.own.best))
        elsewhere = jax.tree.map(
            partial(jnp.where, better),
            self._moved(table, own.inner, jax.tree.map(lambda gene: gene[best], population), total),
            own.inner,
        )
        if len(total) != self.population:
            return own._replace(inner=elsewhere)
        algorithm = self._algorithm(table)
        key = jax.random.key(0)
        told, _ = algorithm.tell(key, own.asked, total, own.inner, self._settings(algorithm))
        mine = jnp.all(own.marks == fingerprints(genes(population)))
        return own._replace(inner=jax.tree.map(partial(jnp.where, mine), told, elsewhere))

    def _moved(self, table: Table, inner: Any, genome: Genome, total: Float[Array, " n"]) -> Any:
        """The state around a genome."""
        there = _relaxed(table, genome)
        if not self._grows:
            return inner.replace(mean=there)
        population = jnp.tile(there, (self.population, 1))
        return inner.replace(
            population=population, fitness=jnp.full(self.population, jnp.min(total))
        )


def _decoded(table: Table, scores: Float[Array, " k"]) -> Genome:
    """The canonical genome of a relaxed one."""
    b, o = len(table.group), len(table.option_pick)
    genome = Genome(
        exact(table, scores[:b]),
        highest(table, scores[b : b + o]),
        jnp.clip(scores[b + o :] + 0.5, 0.0, 1.0),
    )
    return canonical(table, genome)


def _relaxed(table: Table, genome: Genome) -> Float[Array, " k"]:
    """Half above 0 for what is on, half below it for what is off."""
    picked = jnp.asarray(genome.picks)[jnp.asarray(table.option_pick)] == table.option_value
    reals = jnp.asarray(genome.reals) - 0.5
    return jnp.concatenate([genome.bits - 0.5, picked - 0.5, reals]).astype(jnp.float32)


def evosax_peers() -> dict[str, Callable[[], Relaxed]]:
    """Those that there are, by name."""
    if find_spec("evosax") is None:
        return {}
    return {name: partial(Relaxed, name) for name in ALGORITHMS}
