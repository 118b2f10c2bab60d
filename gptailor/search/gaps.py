"""The cuts that bridges mend best: shortest paths over gaps, so many layers skipped."""

import heapq
from collections.abc import Collection, Sequence
from typing import NamedTuple, final

BEST_PATHS = 3
"""Cuts that are worth a trial each."""


@final
class GapPath(NamedTuple):
    """A cut: the dropped positions, and the errors of its gaps together."""

    error: float
    dropped: tuple[int, ...]


def shortest_paths(
    errors: Sequence[Sequence[float]],
    droppable: Collection[int],
    count: int,
    most: int = BEST_PATHS,
) -> list[GapPath]:
    """The cuts of exactly `count` droppable positions whose gaps leave least, the best first.

    `errors` has for each layer what is left over a gap of 1, 2, … layers after it. The first
    position stays, as nothing stands before it that a bridge could change. By dynamic programming
    over the position that stays and how many are dropped before it; the best few of each suffice.
    """
    layers = len(errors)
    best: dict[tuple[int, int], list[GapPath]] = {(0, 0): [GapPath(0.0, ())]}
    for after in range(layers):
        for done in range(count + 1):
            here = best.get((after, done), [])
            for width in range(min(count - done, layers - after - 1) + 1):
                skipped = range(after + 1, after + 1 + width)
                if width and not (
                    width <= len(errors[after]) and droppable_all(skipped, droppable)
                ):
                    break
                more = errors[after][width - 1] if width else 0.0
                key = after + 1 + width, done + width
                found = (GapPath(one.error + more, (*one.dropped, *skipped)) for one in here)
                best[key] = heapq.nsmallest(most, [*best.get(key, []), *found])
    return best.get((layers, count), [])


def droppable_all(positions: Collection[int], droppable: Collection[int]) -> bool:
    """Whether all of some positions may be dropped."""
    return all(position in droppable for position in positions)
