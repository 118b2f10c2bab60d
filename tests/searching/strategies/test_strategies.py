"""One contract for every strategy, on spaces of every kind."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest

from gptailor import loads
from gptailor.plan.registry import STRATEGIES
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import sample
from gptailor.searching.strategies import posterior, strategy_of
from gptailor.searching.strategies.strategy import State, genes
from gptailor.testing import check_strategy, check_valid, losses_of, space_named

CAPACITY = 40
ONE = np.ones(1)


space = cache(space_named)


@cache
def strategy(name: str) -> Any:
    return strategy_of(name)


def some(of: Space, seed: int) -> Genome:
    """Four random genomes."""
    return sample(of.table, key_of(seed), 4)


def started(one: Any, of: Space, tells: int = 2) -> State:
    """A state that was told some random genomes, which the strategy never asked for."""
    state = one.init(of.table, CAPACITY, key_of(0))
    for seed in range(tells):
        result = some(of, 100 + seed)
        state = one.tell(of.table, state, result, losses_of(result), np.ones(4))
    return state


names = pytest.mark.parametrize("name", sorted(STRATEGIES.own))


def test_a_strategy_has_its_registered_name() -> None:
    assert all(strategy(name).name == name for name in STRATEGIES.own)


@names
def test_a_strategy_keeps_the_contract(name: str) -> None:
    check_strategy(name)


@names
def test_a_strategy_asks_for_new_plans(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    for turn in range(4):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        rows = np.concatenate([genes(population), np.unique(genes(state.archive.genomes), axis=0)])
        assert len(np.unique(rows, axis=0)) == len(rows)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)


@names
def test_a_failure_neither_wins_nor_breaks(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    odd = np.array([[np.nan], [np.inf], [-np.inf], [np.nan]])
    state = one.tell(of.table, state, some(of, 9), odd, np.ones(4))
    for turn in range(3):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        check_valid(of, population, fidelity, one.population)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.own))


@names
def test_a_strategy_continues_after_failures_alone(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = one.init(of.table, CAPACITY, key_of(0))
    for seed in range(3):
        state = one.tell(of.table, state, some(of, seed), np.full((4, 1), np.nan), np.ones(4))
    population, fidelity, state = one.ask(of.table, state, key_of(1), ONE)
    check_valid(of, population, fidelity, one.population)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.own))


@names
def test_a_full_archive_keeps_the_best(name: str) -> None:
    one, of = strategy(name), space("mixed")
    state = started(one, of, tells=CAPACITY // 4)
    assert state.archive.size == CAPACITY
    best = float(np.nanmin(state.archive.values))
    failed = np.full((4, 1), np.nan)
    state = one.tell(of.table, state, some(of, 3), failed, np.ones(4))
    for turn in range(2):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        check_valid(of, population, fidelity, one.population)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
    assert state.archive.size == CAPACITY
    assert float(np.nanmin(state.archive.values)) <= best
    assert int(np.isnan(state.archive.values).sum()) <= 1


def open_sizes() -> Space:
    return space_of(loads('tailor 1\nmodel base = "./base"\ndrop any 2..9 of L0..L15\n'), 16)


def test_an_ask_has_plans_of_sizes_spread_over_all_open_sizes() -> None:
    one, of = strategy("surrogate"), open_sizes()
    state = started(one, of)
    sizes = set()
    for turn in range(6):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        dropped = sorted(population.bits.sum(axis=1).tolist())
        assert all(1 <= b - a <= 3 for a, b in pairwise(dropped)), "quarters of eight sizes"
        sizes |= set(dropped)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
    assert sizes == set(range(2, 10))


def test_the_best_plan_of_each_size_improves() -> None:
    one, of = strategy("surrogate"), open_sizes()
    state = started(one, of, tells=4)

    def best() -> dict[int, float]:
        results: dict[int, float] = {}
        for bits, value in zip(state.archive.genomes.bits, state.archive.values, strict=True):
            results[int(bits.sum())] = min(float(value[0]), results.get(int(bits.sum()), np.inf))
        return results

    before = best()
    for turn in range(6):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
    after = best()
    assert after.keys() == set(range(2, 10))
    assert all(after[size] <= value for size, value in before.items())
    least = {size: size * (size + 1) / 2 for size in after}  # the first bits cost least
    assert sum(after[size] > 2 * least[size] for size in after) <= 2


@names
def test_a_strategy_compiles_rarely(name: str) -> None:
    """Once, and again when trials are twice as many."""
    one, of = strategy(name), space("mixed")
    state = started(one, of)
    compiled = posterior._corrected._cache_size
    before = None
    for turn in range(5):  # 8 trials before, 28 after
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
        before = before or compiled()
    assert compiled() == before


@pytest.mark.parametrize("name", sorted(STRATEGIES.own - {"random"}))
def test_a_strategy_beats_random_search(name: str) -> None:
    of = space("mixed")
    assert searched(name, of) < searched("random", of)


def searched(name: str, of: Space) -> float:
    """The mean of the last asks' losses at full fidelity."""
    chosen = strategy(name)
    state = started(chosen, of)
    results: list[float] = []
    for turn in range(16):
        population, fidelity, state = chosen.ask(of.table, state, key_of(turn), ONE)
        values = losses_of(population)
        results += values[:, 0].tolist()
        state = chosen.tell(of.table, state, population, values, fidelity)
    return float(np.mean(results[len(results) // 2 :]))
