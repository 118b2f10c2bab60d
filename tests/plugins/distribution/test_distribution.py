"""The strategy `distribution`, by the contract of all strategies."""

import numpy as np
import pytest

from gptailor.plan.registry import STRATEGIES
from gptailor.plugins.distribution import strategy
from gptailor.searching.space.hash_random import key_of
from gptailor.testing import check_strategy, losses_of, space_named
from tests.searching.strategies.test_strategies import ONE, searched, started, strategy_of


def test_the_strategy_keeps_the_contract() -> None:
    check_strategy("distribution")


def test_the_strategy_belongs_to_gptailor() -> None:
    assert STRATEGIES.is_own("distribution")
    assert STRATEGIES.package("distribution") is None


@pytest.mark.parametrize("kind", ["mixed"])
def test_the_strategy_beats_random_search(kind: str) -> None:
    of = space_named(kind)
    assert searched("distribution", of) < searched("random", of)


def test_a_step_is_compiled_once() -> None:
    one, of = strategy_of("distribution"), space_named("mixed")
    state = started(one, of)
    compiled = strategy._moved._cache_size()
    for turn in range(3):
        population, fidelity, state = one.ask(of.table, state, key_of(turn), ONE)
        state = one.tell(of.table, state, population, losses_of(population), fidelity)
    assert strategy._moved._cache_size() == compiled
    assert np.isfinite(np.concatenate([np.ravel(part) for part in state.own.shape])).all()
