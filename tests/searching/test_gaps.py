"""Measured gaps: cuts as shortest paths compared with all cuts, and the features of a model."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from gptailor import loads
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of, with_gap_errors
from gptailor.searching.space.table import features, gap_features
from gptailor.searching.starts.compositions import BASE_ALONE, composed
from gptailor.searching.starts.cuts import gap_error, shortest_paths


def drawn(layers: int, widest: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((layers, widest)) * np.arange(1, widest + 1)


def cost(errors: np.ndarray, dropped: tuple[int, ...]) -> float | None:
    layers, widest = errors.shape
    kept = [p for p in range(layers) if p not in dropped]
    result = 0.0
    for after, until in pairwise([*kept, layers]):
        width = until - after - 1
        if width > widest:
            return None
        result += errors[after + 1, width - 1] if width else 0.0
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_found_cuts_are_the_best_of_all(count: int, seed: int) -> None:
    errors = drawn(9, 4, seed)
    droppable = set(range(1, 9)) - {seed + 1}
    every = [
        (total, cut)
        for cut in combinations(sorted(droppable), count)
        if (total := cost(errors, cut)) is not None
    ]
    result = shortest_paths(errors, droppable, count)
    assert result == [cut for _, cut in sorted(every)[:3]]


def test_the_first_layer_stays_and_impossible_cuts_give_an_empty_list() -> None:
    errors = drawn(5, 4, 0)
    assert all(0 not in cut for cut in shortest_paths(errors, range(5), 2))
    assert shortest_paths(errors, {1, 2}, 3) == []
    assert shortest_paths(errors, {0}, 1) == []


RAGGED = [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0], [9.0], []]
"""Errors of gaps of one and two layers after each of five layers."""


def measured() -> Space:
    space = space_of(loads('tailor 1\nmodel base = "./base"\ndrop any 1..3 of L0..L4\n'), 5)
    return with_gap_errors(space, RAGGED)


def test_errors_are_kept_by_the_first_layer_of_a_gap() -> None:
    errors = measured().table.gap_errors
    assert errors is not None
    assert errors.tolist() == [[9, 9], [1, 4], [2, 5], [3, 6], [9, 9]]


@pytest.mark.parametrize(
    ("cut", "error"),
    [((1,), 1.0), ((1, 2), 4.0), ((1, 3), 4.0), ((2, 3, 4), 5.0), ((0,), 9.0)],
)
def test_the_error_of_a_cut_is_the_sum_over_its_gaps(cut: tuple[int, ...], error: float) -> None:
    assert gap_error(measured(), cut) == error


def test_features_count_gaps_and_their_errors() -> None:
    space = measured()
    cuts = [(1,), (1, 3), (0, 1, 2), (4,)]
    genomes = [composed(space, BASE_ALONE, cut) for cut in cuts]
    population = Genome(*map(np.stack, zip(*genomes, strict=True)))
    result = gap_features(space.table, features(space.table, population))
    errors = space.table.gap_errors
    assert errors is not None
    gaps = [[1.0], [1.0, 3.0], [9.0], [9.0]]
    log = np.log(errors).mean()
    expected = [
        [len(each), sum(each) / errors.mean(), sum(np.log(item) - log for item in each)]
        for each in gaps
    ]
    np.testing.assert_allclose(result, np.array(expected) / 2, rtol=1e-6)


def test_a_space_without_measured_gaps_has_no_features_of_them() -> None:
    space = space_of(loads('tailor 1\nmodel base = "./base"\ndrop any 1 of L1..L3\n'), 5)
    assert gap_features(space.table, np.zeros((4, 3), np.float32)).shape == (4, 0)
