"""One contract for every strategy, on spaces of every kind."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptailor import loads
from gptailor.plan.registry import STRATEGIES
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space, space_of
from gptailor.search.space.table import canonical
from gptailor.search.strategies import strategy_of
from gptailor.search.strategies.evolution import Evolution
from gptailor.search.strategies.hash_random import drawn, seeds
from gptailor.search.strategies.strategy import State, genes, known

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'

SPACES = {
    "mixed": (
        "drop any 2 of L0..L5\n"
        "L0..L5 from any of math, code by one of (task_arithmetic(0.0..1.0), ties(0.2..0.8))",
        6,
    ),
    "bits": ("drop any 2 of L1..L6", 8),
    "reals": ("scale L1 by 0.5..2.0\nscale L2 by 0.5..2.0", 4),
    "picks": ("L1..L3 from one of base, math, code", 4),
    "one": ("L1 from one of base, math", 4),
}
CAPACITY = 40
ONE = jnp.ones(1)


@pytest.fixture(scope="module", autouse=True)
def _quickly_compiled() -> Iterator[None]:
    """What is compiled here runs a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@cache
def space(name: str) -> Space:
    text, layers = SPACES[name]
    return space_of(loads(HEAD + text), layers)


@cache
def strategy(name: str) -> Any:
    return strategy_of(name)


def losses(population: Genome) -> jax.Array:
    """Fewer first bits, lower options, reals near 0.3."""
    weights = 1 + jnp.arange(population.bits.shape[1])
    bits = jnp.sum(population.bits * weights, axis=1)
    reals = jnp.sum((population.reals - 0.3) ** 2, axis=1)
    return (bits + jnp.sum(population.picks, axis=1) + reals).astype(jnp.float32)[:, None]


def some(of: Space, seed: int) -> Genome:
    """Four random genomes."""
    return drawn(of.table, seeds(jax.random.key(seed), 1)[0], 4)


def started(one: Any, of: Space, tells: int = 2) -> State:
    """A state that was told some random genomes, which the strategy never asked for."""
    state = one.init(of.table, CAPACITY, jax.random.key(0))
    for seed in range(tells):
        found = some(of, 100 + seed)
        state = one.tell(of.table, state, found, losses(found), jnp.ones(4))
    return state


def check_valid(of: Space, population: Genome, fidelity: jax.Array, many: int) -> None:
    table = of.table
    assert population.bits.shape == (many, len(table.group))
    assert population.picks.shape == (many, len(table.options))
    assert population.reals.shape == (many, len(table.at_reals))
    for number, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
        on = population.bits[:, table.group == number].sum(axis=1)
        assert ((low <= on) & (on <= high)).all()
    assert ((population.picks >= 0) & (population.picks < table.options)).all()
    assert ((population.reals >= 0) & (population.reals <= 1)).all()
    same = jax.vmap(partial(canonical, table))(population)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), same, population))
    assert fidelity.shape == (many,)
    assert ((fidelity > 0) & (fidelity <= 1)).all()


def equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


names = pytest.mark.parametrize("name", STRATEGIES)


def test_names_are_their_own() -> None:
    assert all(strategy(name).name == name for name in STRATEGIES)


@names
@pytest.mark.parametrize("kind", SPACES)
def test_what_is_asked_is_in_the_space(name: str, kind: str) -> None:
    one, of = strategy(name), space(kind)
    state = one.init(of.table, CAPACITY, jax.random.key(0))
    for turn in range(3):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        check_valid(of, population, fidelity, 4)
        state = one.tell(of.table, state, population, losses(population), fidelity)


@names
def test_what_is_asked_is_new(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    for turn in range(4):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        rises = np.asarray(known(state.archive, population))
        assert not rises[np.asarray(fidelity) < 1].any()
        rows = np.asarray(genes(population))[~rises]
        assert len(np.unique(rows, axis=0)) == len(rows)
        state = one.tell(of.table, state, population, losses(population), fidelity)


@names
def test_the_key_decides(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    asked = [one.ask(of.table, state, jax.random.key(seed), ONE) for seed in (1, 1, 2)]
    assert equal(asked[0], asked[1])
    assert not equal(asked[0][0], asked[2][0])


@names
def test_a_failure_neither_wins_nor_breaks(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    odd = jnp.array([[jnp.nan], [jnp.inf], [-jnp.inf], [jnp.nan]])
    state = one.tell(of.table, state, some(of, 9), odd, jnp.ones(4))
    for turn in range(3):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        check_valid(of, population, fidelity, one.population)
        state = one.tell(of.table, state, population, losses(population), fidelity)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.own))


@names
def test_nothing_but_failures_is_searched_on(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = one.init(of.table, CAPACITY, jax.random.key(0))
    for seed in range(3):
        state = one.tell(of.table, state, some(of, seed), jnp.full((4, 1), jnp.nan), jnp.ones(4))
    population, fidelity, state = one.ask(of.table, state, jax.random.key(1), ONE)
    check_valid(of, population, fidelity, one.population)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.own))


@names
def test_a_full_archive_keeps_the_best(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of, tells=CAPACITY // 4)
    assert int(state.archive.size) == CAPACITY
    best = float(jnp.nanmin(state.archive.values))
    failed = jnp.full((4, 1), jnp.nan)
    state = one.tell(of.table, state, some(of, 3), failed, jnp.ones(4))
    for turn in range(2):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        check_valid(of, population, fidelity, one.population)
        state = one.tell(of.table, state, population, losses(population), fidelity)
    assert int(state.archive.size) == CAPACITY
    assert float(jnp.nanmin(state.archive.values)) <= best
    assert int(jnp.isnan(state.archive.values).sum()) <= 1


@names
def test_several_objectives_are_weighted(name: str) -> None:
    one, of = strategy(name), space("mixed")
    found = some(of, 7)
    state = one.init(of.table, CAPACITY, jax.random.key(0), 2)
    both = jnp.concatenate([losses(found), -losses(found)], axis=1)
    state = one.tell(of.table, state, found, both, jnp.ones(4))
    assert state.archive.values.shape == (CAPACITY, 2)
    for share in (0.0, 0.7, 1.0):
        weights = jnp.array([share, 1 - share])
        population, fidelity, state = one.ask(of.table, state, jax.random.key(1), weights)
        check_valid(of, population, fidelity, one.population)


@names
def test_each_function_is_compiled_once(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    population, fidelity, state = one.ask(of.table, state, jax.random.key(0), ONE)
    state = one.tell(of.table, state, population, losses(population), fidelity)
    before = type(one).ask._cache_size(), type(one).tell._cache_size()
    for turn in range(3):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        state = one.tell(of.table, state, population, losses(population), fidelity)
    assert (type(one).ask._cache_size(), type(one).tell._cache_size()) == before


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"random"}))
def test_it_is_better_than_chance(name: str) -> None:
    of = space("mixed")
    assert searched(name, of) < searched("random", of)


def searched(name: str, of: Space) -> float:
    """The mean of the last asks' losses at full fidelity."""
    one = strategy(name)
    state = started(one, of)
    found: list[float] = []
    for turn in range(16):
        population, fidelity, state = one.ask(of.table, state, jax.random.key(turn), ONE)
        values = losses(population)
        found += values[:, 0].tolist()
        state = one.tell(of.table, state, population, values, fidelity)
    return float(np.mean(found[len(found) // 2 :]))


def test_the_best_go_up_where_the_fewest_samples_are_more_than_was_asked() -> None:
    one, of = Evolution(), space("mixed")
    state = one.init(of.table, CAPACITY, jax.random.key(0))
    found, values = some(of, 5), jnp.array([[2.0], [0.5], [3.0], [1.0]])
    state = one.tell(of.table, state, found, values, jnp.full(4, 1 / 3))
    population, shares, state = one.ask(of.table, state, jax.random.key(1), ONE)
    assert shares.tolist() == [1.0, 0.25, 0.25, 0.25]
    assert np.array_equal(population.bits[0], found.bits[1])
    state = one.tell(of.table, state, found, values, jnp.ones(4))
    _, shares, _ = one.ask(of.table, state, jax.random.key(1), ONE)
    assert shares.tolist() == [0.25] * 4
