"""One place on a curve of quality over size, by bounds."""

from typing import Any

import pytest

from gptailor.plan.output_size import OutputSize
from gptailor.searching.pick import Bounds, picked
from gptailor.searching.run.records import CurvePoint


def point(layers: int, loss: float, cache: int | None = -1, **changes: Any) -> CurvePoint:
    kept = layers if cache == -1 else cache
    results = {"trial": layers, "size": OutputSize(layers * 100, layers * 200, kept, layers),
             "lost": loss, "share": loss, "nats": 3 * loss}  # fmt: skip
    return CurvePoint(**results | changes)


CURVE = [point(20, 0.5), point(24, 0.1), point(28, 0.02)]


@pytest.mark.parametrize(
    ("bounds", "layers", "kept"),
    [
        (Bounds(parameters=2500), 24, True),
        (Bounds(parameters=10_000), 28, True),
        (Bounds(layers=24), 24, True),
        (Bounds(memory=4800), 24, True),
        (Bounds(memory=4800, context=10), 20, True),
        (Bounds(share=0.2), 24, True),
        (Bounds(nats=0.07), 28, True),
        (Bounds(share=0.6, parameters=2500), 24, True),
        (Bounds(layers=19), 20, False),
        (Bounds(share=0.01), 28, False),
        (Bounds(layers=24, share=0.05), 28, False),
    ],
)
def test_pick_chooses_the_best_within_bounds_or_the_nearest(
    bounds: Bounds, layers: int, kept: bool
) -> None:
    result = picked(CURVE, bounds)
    assert (result[0].size.layers, result[1]) == (layers, kept)


@pytest.mark.parametrize(
    ("bounds", "layers", "kept"),
    [
        ([("Q4_0", 25), ("Q8_0", 50)], 24, True),
        ([("Q4_0", 99), ("Q8_0", 41)], 20, True),
        ([("Q4_0", 24)], 24, True),
        ([("Q4_0", 19)], 20, False),
    ],
)
def test_a_gguf_file_has_bounds_by_its_type(
    bounds: list[tuple[str, int]], layers: int, kept: bool
) -> None:
    sizes = {"Q4_0": 1, "Q8_0": 2}
    files = [[each.size.layers * sizes[kind] for kind, _ in bounds] for each in CURVE]
    result = picked(CURVE, Bounds(share=0.9, gguf=tuple(bounds)), files)
    assert (result[0].size.layers, result[1]) == (layers, kept)


def test_unknown_shares_meet_no_bound() -> None:
    unknown = [point(20, 0.5, share=None), point(24, 0.1, share=None)]
    result = picked(unknown, Bounds(share=0.9))
    assert not result[1]


def test_an_unknown_cache_counts_as_empty() -> None:
    result = picked([point(20, 0.5, None)], Bounds(memory=4000, context=4096))
    assert result[1]
