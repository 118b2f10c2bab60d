"""Peers of the search: continuous strategies of evosax over a relaxed genome.

evosax isn't a dependency: without it `evosax_peers` is empty. A relaxed genome has a score for each
bit and each option, and the reals. The highest scores win; a bit outside sets is on if its score is
above 0.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32
from numpy import ndarray

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key
from gptailor.searching.space.table import Table, canonical, exact
from gptailor.searching.strategies.moves import some_rows
from gptailor.searching.strategies.strategy import (
    Archive,
    Proposal,
    State,
    Strategy,
    fingerprints,
    genes,
)

ALGORITHMS = {"evosax CMA-ES": "CMA_ES", "evosax GA": "SimpleGA"}
WIDTH = 0.3
"""The initial standard deviation of a search."""
FAILED = 1e9
"""The value of a failure for evosax."""


class Own(NamedTuple):
    """The algorithm's state, and its last population."""

    inner: Any
    asked: Float[Array, "n k"]
    marks: UInt32[ndarray, " n"]
    best: float


@final
@dataclass(frozen=True)
class Relaxed(Strategy):
    """One algorithm of evosax. It learns from whole populations of its own.

    If another trial is better, such as a starting plan, the algorithm continues from it.
    """

    name: str
    population: int = 16

    def _algorithm(self, table: Table) -> Any:
        size = len(table.group) + len(table.option_pick) + len(table.at_reals)
        return _algorithm(ALGORITHMS[self.name], self.population, size)

    @property
    def _grows(self) -> bool:
        """Return whether the algorithm has a population, not a distribution."""
        return ALGORITHMS[self.name].endswith("GA")

    def _settings(self, algorithm: Any) -> Any:
        settings = algorithm.default_params
        return settings if self._grows else settings.replace(std_init=WIDTH)

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Own:
        """Return the initial state, around scores of 0."""
        algorithm = self._algorithm(table)
        settings = self._settings(algorithm)
        asked = jnp.zeros((self.population, algorithm.num_dims))
        if self._grows:
            fitness = jnp.full(self.population, FAILED)
            inner = algorithm.init(_jax_key(key), asked, fitness, settings)
        else:
            inner = algorithm.init(_jax_key(key), asked[0], settings)
        return Own(inner, asked, np.zeros(self.population, np.uint32), float("inf"))

    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        """Return the algorithm's next population."""
        algorithm = self._algorithm(table)
        ask = _compiled(algorithm, "ask")
        asked, inner = ask(_jax_key(key), state.own.inner, self._settings(algorithm))
        asked = jnp.nan_to_num(asked)
        population = _decoded(table, np.asarray(asked))
        own = Own(inner, asked, fingerprints(genes(population)), state.own.best)
        return population, np.ones(self.population, np.float32), own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Own:
        """Tell values; the algorithm learns from its own population only."""
        total = np.nan_to_num(new.values.sum(axis=-1), nan=FAILED)
        own: Own = state.own
        asked = own.marks.shape == total.shape
        if asked and (own.marks == fingerprints(genes(new.genomes))).all():
            algorithm = self._algorithm(table)
            tell = _compiled(algorithm, "tell")
            given = own.asked, jnp.asarray(total), own.inner, self._settings(algorithm)
            inner = tell(jax.random.key(0), *given)[0]
        elif total.min() < own.best:
            best = some_rows(new.genomes, total.argmin())
            inner = self._moved(table, own.inner, best, float(total.min()))
        else:
            inner = own.inner
        return own._replace(inner=inner, best=min(own.best, float(total.min())))

    def _moved(self, table: Table, inner: Any, genome: Genome, value: float) -> Any:
        """Return the state around a genome."""
        there = _relaxed(table, genome)
        if not self._grows:
            return inner.replace(mean=there)
        population = jnp.tile(there, (self.population, 1))
        return inner.replace(population=population, fitness=jnp.full(self.population, value))


def _jax_key(key: Key) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(key))


@cache
def _algorithm(name: str, population: int, size: int) -> Any:
    """Return an algorithm by its name, made once for a size."""
    module = importlib.import_module("evosax.algorithms")
    optax = importlib.import_module("optax")  # a requirement of evosax
    more = {"std_schedule": optax.constant_schedule(WIDTH)} if name.endswith("GA") else {}
    return getattr(module, name)(population_size=population, solution=jnp.zeros(size), **more)


@cache
def _compiled(algorithm: Any, what: str) -> Any:
    """Return a method of an algorithm, compiled once."""
    return jax.jit(getattr(algorithm, what))


def _decoded(table: Table, scores: Float[ndarray, "n k"]) -> Genome:
    """Return the canonical genomes of relaxed ones."""
    b, o = len(table.group), len(table.option_pick)
    genome = Genome(
        exact(table, scores[:, :b]),
        _highest(table, scores[:, b : b + o]),
        np.clip(scores[:, b + o :] + 0.5, 0.0, 1.0).astype(np.float32),
    )
    return canonical(table, genome)


def _highest(table: Table, scores: Float[ndarray, "n o"]) -> Int[ndarray, "n c"]:
    """Return the option of each pick with the highest score."""
    starts = np.cumsum(table.options) - table.options
    ends = zip(starts, table.options, strict=True)
    best = [np.argmax(scores[:, start : start + count], axis=1) for start, count in ends]
    return np.array(best, np.int32).reshape(len(starts), len(scores)).T


def _relaxed(table: Table, genome: Genome) -> Float[Array, " k"]:
    """Return a relaxed genome: 0.5 for each bit or option that is on, and -0.5 for others."""
    picked = genome.picks[table.option_pick] == table.option_value
    return jnp.concatenate([genome.bits - 0.5, picked - 0.5, genome.reals - 0.5], dtype=jnp.float32)


def evosax_peers() -> dict[str, Callable[[], Relaxed]]:
    """Return the available peers by name."""
    if find_spec("evosax") is None:
        return {}
    return {name: partial(Relaxed, name) for name in ALGORITHMS}
