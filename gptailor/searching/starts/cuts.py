"""Cuts of a space: by scores, as windows, by the gaps that a bridge closes, by greedy removal.

A cut contains the dropped positions, ascending. Lists of drops don't overlap, so a cut determines
all choices of drops.
"""

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.plan import Drop, DropAny, DropWindow, Plan, count_ends
from gptailor.plan.sites import drops_by_choice
from gptailor.plan.windows import Window, runs, windows_of
from gptailor.searching.space.decode import without_unused
from gptailor.searching.space.space import Space

Cut = tuple[int, ...]
CutScores = Float[np.ndarray, " layers"]
"""A score for each position. Positions with the highest scores are dropped first."""
LEAST = 1 / 16
"""The smallest share of all samples that can rank plans."""


def drops_some(space: Space) -> bool:
    """Return whether the space has a choice of several drops."""
    return any(True for _ in drops_by_choice(space.plan))


def genes_of_cut(space: Space, cut: Cut) -> tuple[Bool[np.ndarray, " b"], Mapping[int, int]]:
    """Return a mask of the bits of dropped positions, and the options of window picks."""
    drops = [bit.subject.role == "drop" and bit.at in cut for bit in space.bits]
    bits = np.array(drops, np.bool_)
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
    """Return cuts of the space's sizes, from the fewest layers to the most, each within the next.

    A list drops its positions with the highest scores. A window drops the best place within the
    place of the longer window. If several choices can grow, the choice with the best mean score
    grows first.
    """
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    cuts_of = [_growing(choice, scores, sums) for _, choice in drops_by_choice(space.plan)]
    sizes = [0] * len(cuts_of)

    def cut() -> Cut:
        return tuple(sorted(at for cuts, n in zip(cuts_of, sizes, strict=True) for at in cuts[n]))

    def gain(number: int) -> float:
        before, after = (cuts_of[number][n] for n in (sizes[number], sizes[number] + 1))
        more = float(scores[list(after)].sum() - scores[list(before)].sum())
        return more / (len(after) - len(before))

    cuts = [cut()]
    while grows := [i for i, n in enumerate(sizes) if n + 1 < len(cuts_of[i])]:
        sizes[max(grows, key=gain)] += 1
        cuts.append(cut())
    return cuts


def _growing(
    choice: DropAny | DropWindow, scores: CutScores, sums: Float[np.ndarray, " ends"]
) -> list[Cut]:
    """Return the cuts of one choice, the fewest layers first; `maybe` begins with an empty cut."""
    low, high = count_ends(choice.count)
    cuts: list[Cut] = []
    if isinstance(choice, DropAny):
        order = sorted(choice.among, key=lambda at: (-float(scores[at]), at))
        cuts = [tuple(sorted(order[:size])) for size in range(low, high + 1)]
    else:
        within: Window = (choice.among[0], choice.among[-1])
        for size in range(high, low - 1, -1):
            places = [
                (first, last)
                for first, last in windows_of(size, choice.among)
                if within[0] <= first and last <= within[1]
            ]
            within = max(
                places, key=lambda ends: (float(sums[ends[1] + 1] - sums[ends[0]]), -ends[0])
            )
            cuts.insert(0, tuple(range(within[0], within[1] + 1)))
    return [(), *cuts] if choice.maybe else cuts


def contiguous(space: Space, scores: CutScores) -> list[Cut]:
    """Return cuts of one stretch, where the lists allow it, the best of each size first.

    The best have the least error of a bridge over their gaps. Without measured gaps they have the
    highest scores. Each window of a statement is among them, with the fewest drops of all other
    choices. Cuts near each place are among them, too.
    """

    def price(cut: Cut) -> float:
        measured = space.table.gap_errors is not None
        return gap_error(space, cut) if measured else -float(scores[list(cut)].sum())

    positions = np.arange(space.layers)
    around = (
        cut
        for twice in range(2 * space.layers - 1)  # twice the middle of a window
        for cut in nested_cuts(space, -np.abs(positions - twice / 2))
        if cut and (twice - len(cut)) % 2
    )
    tried = dict.fromkeys([*around, *_windows_of_each(space, scores)])
    by_size: dict[int, list[Cut]] = {}
    for cut in sorted(tried, key=price):
        by_size.setdefault(len(cut), []).append(cut)
    ranked = sorted(
        (rank, -size, cut) for size, cuts in by_size.items() for rank, cut in enumerate(cuts)
    )
    return [cut for _, _, cut in ranked]


def _windows_of_each(space: Space, scores: CutScores) -> Iterator[Cut]:
    """Yield each place of each window, with the fewest drops of the other choices."""
    least = nested_cuts(space, scores)[0]
    for _, choice in drops_by_choice(space.plan):
        if isinstance(choice, DropWindow):
            outside = set(least) - set(choice.among)
            for first, last in windows_of(choice.count, choice.among):
                yield tuple(sorted(outside | set(range(first, last + 1))))


# --------------------------------------------------------------- the gaps that a bridge closes best

_BEST_PATHS = 3
"""The number of best cuts that are tried."""


def gap_error(space: Space, cut: Cut) -> float:
    """Return the sum of the errors of a bridge over the gaps of a cut."""
    errors = space.table.gap_errors
    assert errors is not None, "measured gaps"
    widest = errors.shape[1]
    return sum(float(errors[first, min(last - first, widest - 1)]) for first, last in runs(cut))


def shortest_paths(
    errors: Float[np.ndarray, "layers widest"], droppable: Collection[int], count: int
) -> list[Cut]:
    """Return the cuts of exactly `count` droppable positions with the least error, the best first.

    `errors` has the remaining errors of a gap of 1, 2, … layers that begins at each position. The
    first position stays, as a bridge needs a layer before it. The algorithm is dynamic programming
    over the position that stays and the number of dropped positions before it. It keeps the best
    few cuts of each state.
    """
    layers, widest = errors.shape
    best: dict[tuple[int, int], list[tuple[float, Cut]]] = {(0, 0): [(0.0, ())]}
    for after in range(layers):
        for done in range(count + 1):
            paths = best.get((after, done), [])
            for width in range(min(count - done, layers - after - 1, widest) + 1):
                skipped = range(after + 1, after + 1 + width)
                if not all(at in droppable for at in skipped):
                    break
                more = float(errors[after + 1, width - 1]) if width else 0.0
                key = after + 1 + width, done + width
                longer = ((error + more, (*dropped, *skipped)) for error, dropped in paths)
                best[key] = heapq.nsmallest(_BEST_PATHS, [*best.get(key, []), *longer])
    return [dropped for _, dropped in best.get((layers, count), [])]


# ----------------------------------------------------------------------------------- greedy removal

_COST = 4.0
"""Evaluations at full fidelity that greedy removal may cost."""
_CANDIDATES = 8
"""The most layers that a round tries to remove."""


def candidates(space: Space, cheapest: float, most: float = _COST) -> int:
    """Return the number of layers that each round of greedy removal tries; 0 if too costly.

    A round costs `cheapest` for each layer. There is a round for each layer that the sets drop at
    most. All rounds together cost at most `most` evaluations.
    """
    size, most = int(sum(space.table.high)), min(most, _COST)
    width = min(_CANDIDATES, int(most / (size * max(cheapest, LEAST)))) if size else 0
    return width if width > 1 else 0


def greedy_removal(
    space: Space,
    plan: Plan,
    influence: Sequence[float],
    losses_of: Callable[[Sequence[Plan]], Sequence[float]],
    width: int,
    removed: Sequence[int] = (),
) -> Iterator[tuple[int, ...]]:
    """Yield the removed positions after each round, which removes the cheapest position (SLEB).

    `losses_of` returns losses of plans, NaN for a failure. A round tries the `width` layers of
    least influence. Its plans drop fewer layers than the space allows, so they aren't trials of the
    space. The removal goes on after the positions in `removed`.
    """
    sets = {bit.at: bit.group for bit in space.bits if bit.group >= 0}
    room = [int(size) for size in space.table.high]
    removed = list(removed)
    for position in removed:
        room[sets[position]] -= 1
    while width and sum(room):
        removable = [p for p, group in sets.items() if p not in removed and room[group]]
        tried = sorted(removable, key=lambda p: (influence[p], p))[:width]
        losses = losses_of([_without(plan, [*removed, position]) for position in tried])
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        removed.append(tried[int(np.argmin(losses))])
        room[sets[removed[-1]]] -= 1
        yield tuple(removed)


def _without(plan: Plan, positions: Sequence[int]) -> Plan:
    layers = tuple(layer for layer in plan.layers if layer.position not in positions)
    drops = tuple(Drop(position=position) for position in positions)
    return without_unused(plan.model_copy(update={"layers": layers, "drops": drops}))
