"""Several objectives as one fitness; values as shares of a reference."""

import numpy as np
import pytest

from gptailor.reporting.measure import AimDirection, LossMeasure
from gptailor.searching.run.asking import by_spread, draw_weights
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.strategies.strategy import scalarise

NAN = float("nan")


def test_the_fitness_is_the_augmented_chebyshev_norm() -> None:
    values = np.array([[1.0, 4.0], [2.0, 1.0]])
    result = scalarise(values, np.array([0.8, 0.2]))
    assert np.allclose(result, [0.8 + 0.05 * 1.6, 1.6 + 0.05 * 1.8])


def test_one_objective_keeps_its_order() -> None:
    values = np.array([[-1.0], [0.0], [3.0]])
    result = scalarise(values, np.ones(1))
    assert bool((np.diff(result) > 0).all())


def test_a_failure_in_one_objective_is_a_failure() -> None:
    result = scalarise(np.array([[NAN, 1.0], [1.0, np.inf], [1.0, 1.0]]), np.array([1.0, 0.0]))
    assert np.isnan(result).tolist() == [True, True, False]


def test_a_dominating_row_has_the_lower_fitness() -> None:
    values = np.random.default_rng(0).random((50, 3))
    worse = values + np.array([0.0, 0.01, 0.0])
    for weights in (np.array([0.2, 0.3, 0.5]), np.array([0.9, 0.05, 0.05])):
        assert bool((scalarise(values, weights) < scalarise(worse, weights)).all())


def test_weights_are_of_the_simplex_and_by_key() -> None:
    drawn = np.stack([draw_weights(key_of(seed), 3) for seed in range(200)])
    assert np.allclose(drawn.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(drawn.mean(axis=0), 1 / 3, atol=0.06)
    assert float(drawn.max()) > 0.9
    assert np.array_equal(drawn[3], draw_weights(key_of(3), 3))
    assert draw_weights(key_of(0), 1).tolist() == [1.0]


def test_a_size_has_no_more_weight_than_scores() -> None:
    even = np.array([0.5, 0.5])
    scores = np.array([0.10, 0.12, 0.14, 0.18, 0.9, NAN])  # of cuts, the larger the smaller
    sizes = np.array([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    losses = np.stack([scores, sizes], axis=1)
    least = int(np.nanargmin(scalarise(losses, even)))
    assert least == 3
    result = by_spread(even, losses)
    assert result.sum() == pytest.approx(1)
    assert result[0] / result[1] == pytest.approx(0.5 / 0.04)
    assert by_spread(even, losses[:3]).tolist() == even.tolist()
    assert by_spread(np.ones(1), losses[:, :1]).tolist() == [1.0]


def losses(values: list[float], measure: LossMeasure) -> list[float]:
    return [measure.loss(value) for value in values]


def test_a_loss_by_the_base_is_the_lost_share() -> None:
    assert losses([2.0, 3.0], LossMeasure("minimize", 2.0, 2.0)) == [0.0, 0.5]
    assert losses([0.5, 0.25], LossMeasure("maximize", 0.5, 0.5)) == [0.0, 0.5]
    assert np.isnan(LossMeasure("minimize", 2.0, 2.0).loss(NAN))


def test_losses_by_the_spread_are_0_to_1_for_starting_plans() -> None:
    starts = [0.2, 0.6, NAN, float("inf")]
    result = losses([0.2, 0.6, 0.1], LossMeasure.of_spread("minimize", starts))
    assert result == pytest.approx([0.0, 1.0, -0.25])
    upwards, alone, nothing = (
        LossMeasure.of_spread("maximize", starts),
        LossMeasure.of_spread("minimize", [0.5]),
        LossMeasure.of_spread("minimize", []),
    )
    assert losses([0.6, 0.2], upwards) == pytest.approx([0.0, 1.0])
    assert losses([0.5, 0.7], alone) == pytest.approx([0.0, 0.2])
    assert losses([0.5], nothing) == [0.5]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_loss_is_linear_in_the_score(direction: AimDirection) -> None:
    for measure in (
        LossMeasure(direction, 2.0, 2.0),
        LossMeasure.of_spread(direction, [1.0, 5.0]),
    ):
        assert measure.loss(4.0) - measure.loss(3.0) == measure.per_score
        assert measure.difference(4.0, 3.0) == measure.per_score
