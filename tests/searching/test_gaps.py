"""Cuts as shortest paths over gaps, beside all cuts there are."""

import random
from itertools import combinations, pairwise

import pytest

from gptailor.searching.starts.cuts import shortest_paths


def drawn(layers: int, widest: int, seed: int) -> list[list[float]]:
    chance = random.Random(seed)
    return [
        [chance.random() * width for width in range(1, min(widest, layers - after - 1) + 1)]
        for after in range(layers)
    ]


def cost(errors: list[list[float]], dropped: tuple[int, ...]) -> float | None:
    kept = [p for p in range(len(errors)) if p not in dropped]
    found = 0.0
    for after, until in pairwise([*kept, len(errors)]):
        width = until - after - 1
        if width > len(errors[after]):
            return None
        found += errors[after][width - 1] if width else 0.0
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_they_are_the_best_of_all_cuts(count: int, seed: int) -> None:
    errors = drawn(9, 4, seed)
    droppable = set(range(1, 9)) - {seed + 1}
    every = [
        (total, cut)
        for cut in combinations(sorted(droppable), count)
        if (total := cost(errors, cut)) is not None
    ]
    found = shortest_paths(errors, droppable, count)
    assert found == [cut for _, cut in sorted(every)[:3]]


def test_the_first_layer_stays_and_what_cannot_be_is_nothing() -> None:
    errors = drawn(5, 4, 0)
    assert all(0 not in cut for cut in shortest_paths(errors, range(5), 2))
    assert shortest_paths(errors, {1, 2}, 3) == []
    assert shortest_paths(errors, {0}, 1) == []
