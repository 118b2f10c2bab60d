"""Greedy removal: one layer leaves after another, each time the one that costs least.

SLEB (arXiv 2402.09025) as far as a budget goes. On the way plans have fewer layers dropped than a
space may allow, so that its evaluations are no trials of a search.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gptailor.plan.plan import Drop, Plan
from gptailor.search.space.decode import without_unused
from gptailor.search.space.space import Space

LEAST = 1 / 16
"""The smallest share of all samples that chooses between plans."""
COST = 4.0
"""Evaluations at full fidelity that greedy removal may cost."""
CANDIDATES = 8
"""Layers of which one leaves, at most."""


def candidates(space: Space, cheapest: float) -> int:
    """Layers that each round of greedy removal tries; 0 where that would cost too much.

    All rounds together cost this many times `cheapest` times the number of dropped layers.
    """
    size = int(sum(space.table.sizes))
    found = min(CANDIDATES, int(COST / (size * max(cheapest, LEAST)))) if size else 0
    return found if found > 1 else 0


def greedy_removal(
    space: Space,
    whole: Plan,
    influence: Sequence[float],
    judge: Callable[[Sequence[Plan]], Sequence[float]],
    cheapest: float,
) -> tuple[int, ...]:
    """The positions that leave one after another, each time the one that costs least (SLEB).

    `whole` is the plan of which they are removed, `judge` gives losses of plans, on the `cheapest`
    share of the samples (NaN for a failure). Tried are the layers of least influence. On the way
    plans have fewer layers dropped than the space allows, so that these are no trials of it.
    """
    sets = {bit.at: bit.group for bit in space.bits if bit.group >= 0}
    room = [int(size) for size in space.table.sizes]
    width = candidates(space, cheapest)
    taken: list[int] = []
    while width and sum(room):
        there = [p for p, group in sets.items() if p not in taken and room[group]]
        tried = sorted(there, key=lambda p: (influence[p], p))[:width]
        losses = judge([_without(whole, [*taken, position]) for position in tried])
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        taken.append(tried[int(np.argmin(losses))])
        room[sets[taken[-1]]] -= 1
    return tuple(taken)


def _without(plan: Plan, positions: Sequence[int]) -> Plan:
    layers = tuple(layer for layer in plan.layers if layer.position not in positions)
    drops = tuple(Drop(position=position) for position in positions)
    return without_unused(plan.model_copy(update={"layers": layers, "drops": drops}))
