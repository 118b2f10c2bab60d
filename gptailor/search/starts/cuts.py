"""Cuts of a space: by scores, as windows, by the gaps that a bridge closes, by greedy removal.

A cut is the dropped positions, ascending. Lists of drops don't meet, so that a cut determines every
choice of drops.
"""

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.plan import Drop, DropAny, DropWindow, Plan, count_ends
from gptailor.plan.sites import drops_by_choice
from gptailor.plan.windows import Window, windows_of
from gptailor.search.space.decode import without_unused
from gptailor.search.space.space import Space

Cut = tuple[int, ...]
CutScores = Float[np.ndarray, " layers"]
"""How much each position is to be dropped."""
LEAST = 1 / 16
"""The smallest share of all samples that chooses between plans."""


def drops_some(space: Space) -> bool:
    """Return whether the space has a choice of several drops."""
    return any(True for _ in drops_by_choice(space.plan))


def genes_of_cut(space: Space, cut: Cut) -> tuple[Bool[np.ndarray, " b"], Mapping[int, int]]:
    """Which bits of drops are on, and which options the picks of windows have."""
    bits = np.zeros(len(space.bits), np.bool_)
    bits[
        [i for i, bit in enumerate(space.bits) if bit.subject.role == "drop" and bit.at in cut]
    ] = 1
    picks: dict[int, int] = {}
    for at, choice in drops_by_choice(space.plan):
        inside = [position for position in choice.among if position in cut]
        if choice.maybe:
            bits[space.index[*at, "maybe"][0]] = bool(inside)
        if isinstance(choice, DropWindow) and inside:
            [pick] = space.index[at]
            picks[pick] = space.picks[pick].options.index((inside[0], inside[-1]))
    return bits, picks


def nested_cuts(space: Space, scores: CutScores) -> list[Cut]:
    """Cuts of the space's sizes, from the fewest layers to the most, each within the next one.

    Of each list the positions with the highest scores leave, of a window's the best place for it
    within that of the longer one. Where several choices could take more, that with the best mean
    score goes first.
    """
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    found = [_growing(choice, scores, sums) for _, choice in drops_by_choice(space.plan)]
    taken = [0] * len(found)

    def whole() -> Cut:
        return tuple(sorted(at for cuts, n in zip(found, taken, strict=True) for at in cuts[n]))

    def gain(number: int) -> float:
        now, then = (found[number][n] for n in (taken[number], taken[number] + 1))
        more = float(scores[list(then)].sum() - scores[list(now)].sum())
        return more / (len(then) - len(now))

    cuts = [whole()]
    while grows := [i for i, n in enumerate(taken) if n + 1 < len(found[i])]:
        taken[max(grows, key=gain)] += 1
        cuts.append(whole())
    return cuts


def _growing(choice: DropAny | DropWindow, scores: CutScores, sums: CutScores) -> list[Cut]:
    """Return the drops of one choice, from the fewest layers to the most; none first by `maybe`."""
    low, high = count_ends(choice.count)
    found: list[Cut] = []
    if isinstance(choice, DropAny):
        order = sorted(choice.among, key=lambda at: (-float(scores[at]), at))
        found = [tuple(sorted(order[:size])) for size in range(low, high + 1)]
    else:
        within: Window = (choice.among[0], choice.among[-1])
        for size in range(high, low - 1, -1):
            places = [
                (first, last)
                for first, last in windows_of(size, choice.among)
                if within[0] <= first and last <= within[1]
            ]
            within = max(places, key=lambda one: (float(sums[one[1] + 1] - sums[one[0]]), -one[0]))
            found.insert(0, tuple(range(within[0], within[1] + 1)))
    return [(), *found] if choice.maybe else found


@final
@dataclass(frozen=True)
class Contiguous:
    """Cuts of one stretch, where the lists allow it: those that are chosen, and all there are."""

    cuts: list[Cut]
    all: list[Cut]


def contiguous(space: Space, scores: CutScores, most: int) -> Contiguous:
    """At most so many cuts near a place each, those with the highest scores of each size first.

    All windows of a statement are among them, beside the best that others come to. The best ones
    come first, of each size in turn.
    """
    found: dict[Cut, None] = {}
    positions = np.arange(space.layers)
    for twice in range(2 * space.layers - 1):  # the middles of windows, whole ones and halves
        for cut in nested_cuts(space, -np.abs(positions - twice / 2)):
            if cut and (twice - len(cut)) % 2:
                found.setdefault(cut)
    for cut in _windows_of_each(space, scores):
        found.setdefault(cut)
    by_size: dict[int, list[Cut]] = {}
    for cut in sorted(found, key=lambda cut: -float(scores[list(cut)].sum())):
        by_size.setdefault(len(cut), []).append(cut)
    ranked = sorted(
        (rank, -size, cut) for size, cuts in by_size.items() for rank, cut in enumerate(cuts)
    )
    cuts = [cut for _, _, cut in ranked]
    return Contiguous(cuts[:most], cuts)


def _windows_of_each(space: Space, scores: CutScores) -> Iterator[Cut]:
    """Each place of each window, with what the other choices drop at least."""
    least = nested_cuts(space, scores)[0]
    for _, choice in drops_by_choice(space.plan):
        if isinstance(choice, DropWindow):
            others = set(least) - set(choice.among)
            for first, last in windows_of(choice.count, choice.among):
                yield tuple(sorted(others | set(range(first, last + 1))))


# --------------------------------------------------------------- the gaps that a bridge closes best

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
                    width <= len(errors[after]) and all(one in droppable for one in skipped)
                ):
                    break
                more = errors[after][width - 1] if width else 0.0
                key = after + 1 + width, done + width
                found = (GapPath(one.error + more, (*one.dropped, *skipped)) for one in here)
                best[key] = heapq.nsmallest(most, [*best.get(key, []), *found])
    return best.get((layers, count), [])


# ----------------------------------------------------------------------------------- greedy removal

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
