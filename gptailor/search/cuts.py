"""Cuts: which positions the choices of a space drop together, of each size that it has.

A cut is the dropped positions, ascending. Lists of drops don't meet, so that these say what each
choice came to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.plan import DropAny, DropWindow, count_ends
from gptailor.plan.walk import drops_by_choice
from gptailor.plan.windows import Window, windows_of
from gptailor.search.space.space import Space

Cut = tuple[int, ...]
CutScores = Float[np.ndarray, " layers"]
"""How much each position is to be dropped."""


def drops_some(space: Space) -> bool:
    """Whether the space has a choice of several drops."""
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
    """What one choice drops, from the fewest layers to the most; nothing first, with `maybe`."""
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


def cut_words(cut: Sequence[int]) -> str:
    """`L5..L11`, `L3, L7`, `nothing`."""
    if len(cut) > 1 and cut[-1] - cut[0] == len(cut) - 1:
        return f"L{cut[0]}..L{cut[-1]}"
    return ", ".join(f"L{position}" for position in cut) or "nothing"
