"""One place on a curve of quality over size, by bounds."""

from typing import Any

import pytest

from gptailor.searching.pick import Bounds, picked
from gptailor.searching.run.records import SizeRow, front_file


def row(layers: int, loss: float, **changes: Any) -> SizeRow:
    found = {"layers": layers, "parameters": layers * 100, "bytes": layers * 200,
             "kv_cache": layers, "share": loss, "nats": 3 * loss,
             "trial": layers, "file": front_file(layers), "origin": "surrogate", "samples": 4,
             "seconds": 1.0, "stage": "bare", "before": None, "values": (1.0,), "failure": None,
             "stderrs": (0.1,), "lost": loss,
             "held": None, "cut": "", "recipe": "", "lost_stderr": None, "held_lost": None,
             "held_lost_stderr": None}  # fmt: skip
    return SizeRow(**found | changes)


CURVE = [row(20, 0.5), row(24, 0.1), row(28, 0.02)]


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
def test_the_best_that_keeps_to_it_or_the_nearest(bounds: Bounds, layers: int, kept: bool) -> None:
    found = picked(CURVE, bounds)
    assert found is not None
    assert (found[0].layers, found[1]) == (layers, kept)


def test_what_is_not_known_keeps_to_no_bound() -> None:
    unknown = [row(20, 0.5, share=None), row(24, 0.1, share=None)]
    found = picked(unknown, Bounds(share=0.9))
    assert found is not None
    assert not found[1]


def test_a_cache_that_is_not_known_takes_nothing() -> None:
    found = picked([row(20, 0.5, kv_cache=None)], Bounds(memory=4000, context=4096))
    assert found is not None
    assert found[1]


def test_of_no_places_none_is_picked() -> None:
    assert picked([], Bounds(layers=3)) is None
