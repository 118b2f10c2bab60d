"""Greedy removal: layers leave one after another, each time the one that costs least (SLEB).

See arXiv 2402.09025.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gptailor.plan.plan import Drop, Plan
from gptailor.search.space.decode import without_unused
from gptailor.search.space.space import Space
from gptailor.search.starts import LEAST

_COST = 4.0
"""Evaluations at full fidelity that greedy removal may cost."""
_CANDIDATES = 8
"""Layers of which one leaves, at most."""


def candidates(space: Space, cheapest: float, most: float = _COST) -> int:
    """Layers that each round of greedy removal tries; 0 where that would cost too much.

    All rounds together cost this many times `cheapest` times the most layers that sets drop, and
    so many evaluations at `most`.
    """
    size, most = int(sum(space.table.high)), min(most, _COST)
    found = min(_CANDIDATES, int(most / (size * max(cheapest, LEAST)))) if size else 0
    return found if found > 1 else 0


def greedy_removal(
    space: Space,
    whole: Plan,
    influence: Sequence[float],
    judge: Callable[[Sequence[Plan]], Sequence[float]],
    width: int,
    taken: Sequence[int] = (),
) -> Iterator[tuple[int, ...]]:
    """The positions that leave one after another, each time the one that costs least (SLEB).

    `whole` is the plan of which they are removed, `judge` gives losses of plans (NaN for a
    failure). Tried are `width` layers of least influence. On the way plans have fewer layers
    dropped than the space allows, so that these are no trials of it. Gives all that are `taken`
    after each round, and goes on after those that were before.
    """
    sets = {bit.at: bit.group for bit in space.bits if bit.group >= 0}
    room = [int(size) for size in space.table.high]
    taken = list(taken)
    for position in taken:
        room[sets[position]] -= 1
    while width and sum(room):
        there = [p for p, group in sets.items() if p not in taken and room[group]]
        tried = sorted(there, key=lambda p: (influence[p], p))[:width]
        losses = judge([_without(whole, [*taken, position]) for position in tried])
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        taken.append(tried[int(np.argmin(losses))])
        room[sets[taken[-1]]] -= 1
        yield tuple(taken)


def _without(plan: Plan, positions: Sequence[int]) -> Plan:
    layers = tuple(layer for layer in plan.layers if layer.position not in positions)
    drops = tuple(Drop(position=position) for position in positions)
    return without_unused(plan.model_copy(update={"layers": layers, "drops": drops}))
