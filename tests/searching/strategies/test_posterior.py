"""The surrogate's model: its results for trials with a fitness that is known to be a sum."""

import numpy as np
import pytest

from gptailor import loads
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import space_of
from gptailor.searching.space.table import Table, features, sample
from gptailor.searching.strategies import posterior
from gptailor.searching.strategies.posterior import Coefficients, Observations, draw, sharing

LAYERS = 24
HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'
TEXT = f"drop any 6 of L0..L{LAYERS - 1}\nL0..L{LAYERS - 1} from one of base, math, code"
COSTS = np.random.default_rng(1).gamma(2.0, size=LAYERS)
"""The cost of each layer's removal."""


def table() -> Table:
    return space_of(loads(HEAD + TEXT), LAYERS).table


def effects(of: Table, seed: int, many: int) -> np.ndarray:
    return features(of, sample(of, key_of(seed), many)).astype(float)


def fitness(of: Table, rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows[:, of.drops] @ COSTS
    return result


def fitted(of: Table, many: int, prior: np.ndarray | None = None) -> Coefficients:
    """The mean of this many trials without noise."""
    rows = effects(of, 3, many)
    values = fitness(of, rows)
    pairs = posterior.products(of, rows)
    seen = Observations(
        rows - rows.mean(0),
        pairs - pairs.mean(0),
        np.zeros(many),
        (values - values.mean()) / values.std(),
        np.ones(many),
    )
    return draw(seen, sharing(of, prior), np.zeros(1), key_of(0))


def agreement(of: Table, by: Coefficients) -> float:
    """The correlation of other genomes' expected and true fitness."""
    rows = effects(of, 4, 200)
    expected = rows @ by.features + posterior.products(of, rows) @ by.pairs
    return float(np.corrcoef(expected[:, 0], fitness(of, rows))[0, 1])


def test_dropped_layers_have_known_features() -> None:
    of = table()
    assert of.at_features[of.drops].tolist() == list(range(LAYERS))
    rows = effects(of, 0, 5)
    assert (rows[:, of.drops].sum(axis=1) == 6).all()


def test_the_posterior_learns_a_sum() -> None:
    of = table()
    assert agreement(of, fitted(of, 120)) > 0.95


def test_measured_layers_replace_trials() -> None:
    of = table()
    about = COSTS * np.exp(0.3 * np.random.default_rng(2).normal(size=LAYERS))
    without = agreement(of, fitted(of, 12))
    assert agreement(of, fitted(of, 12, about)) > max(without + 0.1, 0.75)


@pytest.mark.parametrize("nothing", [np.zeros(LAYERS), np.full(LAYERS, np.nan)])
def test_a_measure_without_information_changes_nothing(nothing: np.ndarray) -> None:
    of = table()
    assert np.array_equal(fitted(of, 12, nothing).features, fitted(of, 12).features)


def test_padding_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    of = table()
    result = fitted(of, 40)
    monkeypatch.setattr(posterior, "_LEAST", 256)
    monkeypatch.setattr(posterior, "_STEP", 1024)
    for one, other in zip(result, fitted(of, 40), strict=True):
        assert np.allclose(one, other, atol=1e-4)
