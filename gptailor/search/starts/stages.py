"""Starting plans: what people do without a search, as genomes of any space, stage by stage.

Compositions are the base and each other model alone, uniform merges of all and of two. What is
dropped of them goes by block influence (ShortGPT, arXiv 2403.03853), as the best contiguous window
(arXiv 2403.17887), or as greedy removal took it of the base (SLEB, arXiv 2402.09025). Where a space
has cuts of several sizes, compositions have one of the middle, and the best of them is tried with
each size, every cut within the next larger one. A plan is named by what was done, and by its
composition where the space has several.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias, final

import numpy as np

from gptailor.search.run.origin import (
    BestWindow,
    BlockAgain,
    BlockInfluenceCut,
    BridgedCut,
    Composition,
    EarlierOrigin,
    GreedyRemoval,
    ModelAlone,
    NothingDropped,
    PlanLayers,
    TrialOrigin,
    UniformMerge,
    WindowCut,
    composition_words,
    origin_words,
)
from gptailor.search.run.schedule import Start, ToldStart
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space
from gptailor.search.starts.blocks import Scan, always_again, scan_of, with_block
from gptailor.search.starts.compositions import composed, compositions
from gptailor.search.starts.cuts import (
    LEAST,
    Contiguous,
    Cut,
    CutScores,
    contiguous,
    drops_some,
    nested_cuts,
)

_MOST_ALONE = 5
"""Models alone that are evaluated in full, at most."""
_MERGES = 2
"""Uniform merges by the mean that are evaluated in full."""
_WINDOWS = 6.0
"""Evaluations at full fidelity that windows may cost together."""
_BEST_WINDOWS = 2
"""Windows that are evaluated in full, where all have one size."""
_SIZES = 4
"""Sizes of cuts that are evaluated in full, spread over all, where there are several."""
_OTHER_SIZES = 4.0
"""Evaluations at full fidelity that the other sizes may cost together."""
_SCAN = 8.0
"""Evaluations at full fidelity that the scan of blocks that come again may cost."""
_SCAN_SHARE = 0.7
"""The share of all starting plans' cost that the scan may have."""
_BEST_BLOCKS = 3
"""Blocks that are evaluated in full."""
_BRIDGED = (BridgedCut(rank=1), BridgedCut(rank=2), BridgedCut(rank=3))
_MAYBE = (1 / 8, 1 / 4)
"""The shares of the positions with `maybe drop` that are dropped, where no number is said."""


# ---------------------------------------------------------------------------------- the stages


Holds: TypeAlias = Callable[[Genome], bool]
"""A test of whether a genome's plan is within bounds."""


@final
class Beyond(NamedTuple):
    """Starting plans that are not within bounds: compositions, and windows."""

    origins: tuple[TrialOrigin, ...] = ()
    windows: tuple[Cut, ...] = ()


_NONE_BEYOND = Beyond()


@final
@dataclass(frozen=True, eq=False)
class Starts:
    """The starting plans of a space.

    `influence` is the block influence of each layer, by the name of a composition in `wholes`;
    without it layers in the middle are dropped first. `removal` are the positions that
    `greedy_removal` takes of the base, `bridged` the cuts whose gaps a bridge closes best.
    `cheapest` is the least share of all samples that a trial may use, `room` how many evaluations
    at full fidelity all may cost together: where that is too little for all, those come that are
    expected to gain most.
    """

    space: Space
    influence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    removal: Sequence[int] = ()
    cheapest: float = 1.0
    room: float = math.inf
    bridged: Sequence[Cut] = ()
    _made: dict[tuple[Composition, Cut], Genome] = field(
        default_factory=dict, init=False, repr=False
    )
    _tried: dict[tuple[Composition, int], Contiguous] = field(
        default_factory=dict, init=False, repr=False
    )

    def next(self, told: Sequence[ToldStart]) -> list[Start]:
        """The next stage, given what came of all stages before it, in their order; [] at the end.

        It depends on nothing else, and on losses by their order alone. A plan's origin is
        that of the plan asked for at its place, whatever a study notes.
        """
        known: dict[str, list[ToldStart]] = {}
        count = 0
        for name, wanted in self._stages(known):
            if len(told) < count + len(wanted):
                return wanted
            known[name] = [
                one._replace(origin=start.origin)
                for one, start in zip(told[count:], wanted, strict=False)
            ]
            count += len(wanted)
        return []

    def _stages(self, known: Mapping[str, list[ToldStart]]) -> Iterator[tuple[str, list[Start]]]:
        """The stages and their plans, each made when those before it are known."""
        few = self._low * len(self._all) <= self.room / 4
        saves = self._low <= 1 / 2 and few  # all compositions on few samples first
        yield "glances", [self._alone(one, self._low) for one in self._all] if saves else []
        yield "compositions", self._compositions(known["glances"])
        if self._scan.blocks:
            of = self._best(known["compositions"])
            yield "blocks", self._blocks(of)
            yield "best blocks", self._best_blocks(known["blocks"])
        if not drops_some(self.space):
            yield "maybe", self._maybe(known["compositions"])
            return
        best = self._best(known["compositions"])
        yield "bridged cuts", self._bridged(best)
        yield "sizes", self._of_each_size(best)
        spent = math.fsum(one.share for told in known.values() for one in told)
        windows = self._windows(best, self.room - spent).cuts
        yield (
            "windows",
            [
                self._start(WindowCut(of=self._of(best), dropped=cut), best, cut, self._low)
                for cut in windows
            ],
        )
        yield "best windows", self._best_windows(best, windows, known["windows"])
        yield "removed", self._removed(best)

    def _compositions(self, glances: Sequence[ToldStart]) -> list[Start]:
        order = ranked(glances) if glances else range(len(self._all))
        ordered = [self._all[i] for i in order]
        alone = [one for one in ordered if isinstance(one, ModelAlone)]
        merges = [one for one in ordered if isinstance(one, UniformMerge)]
        kept = {self._all[0], *alone[: _MOST_ALONE - 1]}
        kept.update([one for one in merges if one.coefficient is None][:_MERGES])
        kept.update(one for one in merges if one.coefficient is not None)
        found = [one for one in self._all if one in kept]
        cuts = any(bit.subject.role == "drop" for bit in self.space.bits)
        later = cuts or drops_some(self.space) or bool(self._scan.blocks)
        most = max(1, int(min(self.room / 2 if later else self.room, len(found))))
        if most < len(found):
            found = [one for one in ordered if one in found][:most]
        return [self._alone(one, 1.0) for one in found]

    def _blocks(self, of: Composition) -> list[Start]:
        """Each block alone on few samples, in the order in which the most layers run once."""
        genome = self._genome(of, self._of_middle(nested_cuts(self.space, self._scores(of))))
        return [
            Start(
                BlockAgain(of=self._of(of), block=choice.windows[option]),
                with_block(self.space, genome, choice, option),
                self._low,
            )
            for choice, option in self._scan.blocks
        ]

    def _best_blocks(self, told: Sequence[ToldStart]) -> list[Start]:
        """The best blocks in full, and the best of all as often as it may come again."""
        order = ranked(told)[:_BEST_BLOCKS]
        saves = self._low < 1
        found = [Start(told[i].origin, told[i].genome, 1.0) for i in order if saves]
        choice, option = self._scan.blocks[order[0]]
        best = told[order[0]].origin
        if choice.times >= 0 and isinstance(best, BlockAgain):
            options = self.space.picks[choice.times].options
            last = len(options) - 1
            genome = with_block(self.space, told[order[0]].genome, choice, option, last)
            often = BlockAgain(of=best.of, block=best.block, times=int(str(options[last])))
            found.append(Start(often, genome, 1.0))
        return found

    @cached_property
    def _scan(self) -> Scan:
        return scan_of(self.space, int(min(_SCAN, _SCAN_SHARE * self.room) / self._low))

    def _bridged(self, best: Composition) -> list[Start]:
        """The best composition without what a bridge closes best; one such where room is short.

        They are evaluated in full, as each of them may be bridged in the end.
        """
        cuts = list(zip(_BRIDGED, self.bridged, strict=False))
        few = cuts if len(cuts) <= self.room / 6 else cuts[:1]
        return [self._start(origin, best, cut, 1.0) for origin, cut in few]

    def _windows(self, of: Composition, room: float) -> Contiguous:
        """Windows, those of least influence first; others are left out where all cost too much.

        Half of the room is for the best ones in full, and for what comes after them.
        """
        most = max(1, int(min(_WINDOWS, room / 2) / self._low))
        if (of, most) not in self._tried:
            self._tried[of, most] = contiguous(self.space, self._scores(of), most)
        return self._tried[of, most]

    def _best_windows(
        self, best: Composition, windows: Sequence[Cut], told: Sequence[ToldStart]
    ) -> list[Start]:
        """The best windows in full, of several sizes those of some, and the best one on the base.

        Where all were in full already, only the best one comes once more by that name.
        """
        order = ranked(told)
        several = len(self._sizes) > 1
        if several:
            chosen = _spread(sorted({len(cut) for cut in windows}))
            order = [next(i for i in order if len(windows[i]) == size) for size in chosen]
        else:
            order = order[: _BEST_WINDOWS if self._low < 1 else 1]
        tried = [(best, i) for i in order]
        middle = len(order) // 2 if several else 0
        base = self._all[0]
        if best != base and order:
            tried.append((base, order[middle]))

        def origin(of: Composition, i: int) -> TrialOrigin:
            cut, named = windows[i], self._of(of)
            if several or i == order[0]:
                return BestWindow(of=named, layers=len(cut) if several else None)
            return WindowCut(of=named, dropped=cut)

        return [self._start(origin(of, i), of, windows[i], 1.0) for of, i in tried]

    def _removed(self, best: Composition) -> list[Start]:
        if not self.removal:
            return []
        cut = self._of_middle(nested_cuts(self.space, self._by_removal(best)))
        both = dict.fromkeys([best, self._all[0]])
        return [self._start(GreedyRemoval(of=self._of(one)), one, cut, 1.0) for one in both]

    def _of_each_size(self, best: Composition) -> list[Start]:
        """The best composition with nested cuts of all sizes, first some of them in full.

        Where the others would cost too much on few samples, those of few layers come.
        """
        by = GreedyRemoval if self.removal else BlockInfluenceCut
        scores = self._by_removal(best) if self.removal else self._scores(best)
        cuts = nested_cuts(self.space, scores)
        full = _spread([len(cut) for cut in cuts], max(2, int(min(_SIZES, self.room / 4))))
        first = [cut for cut in cuts if len(cut) in full]
        others = [cut for cut in cuts if len(cut) not in full]
        found = []
        for cut in [*first, *others[: int(min(_OTHER_SIZES, self.room / 4) / self._low)]]:
            if cut != self._of_middle(cuts):
                of = self._of(best)
                origin = by(of=of, layers=len(cut)) if cut else NothingDropped(of=of)
                share = 1.0 if cut in first else self._low
                found.append(self._start(origin, best, cut, share))
        return found

    def _by_removal(self, best: Composition) -> CutScores:
        """Scores by which what greedy removal took first is dropped first, then by influence."""
        scores = self._scores(best) - 1e9
        scores[list(self.removal)] = -np.arange(len(self.removal), dtype=np.float64)
        return scores

    def _maybe(self, told: Sequence[ToldStart]) -> list[Start]:
        """The best composition without some of the layers that may be dropped."""
        best = self._best(told)
        scores = self._scores(best)
        places = {bit.at for bit in self.space.bits if bit.subject.role == "drop"}
        order = sorted(places, key=lambda at: (-float(scores[at]), at))
        counts = dict.fromkeys(max(1, round(share * len(order))) for share in _MAYBE if order)
        return [
            self._start(
                BlockInfluenceCut(of=self._of(best), layers=count),
                best,
                tuple(sorted(order[:count])),
                1.0,
            )
            for count in counts
        ]

    # -------------------------------------------------------------------------------- what they use

    @cached_property
    def _all(self) -> list[Composition]:
        return compositions(self.space)

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(cut) for cut in nested_cuts(self.space, np.zeros(self.space.layers))]

    def left_out(self, tried: Collection[TrialOrigin], beyond: Beyond = _NONE_BEYOND) -> list[str]:
        """Return what wasn't tried for want of room, in words; `tried` are the origins of trials.

        That isn't known where a study has the words of origins alone.
        """
        if any(isinstance(origin, EarlierOrigin) for origin in tried):
            return []
        tried = {*tried}
        wanted = [self._origin(one) for one in self._all]
        found = [origin_words(one) for one in wanted if one not in {*tried, *beyond.origins}]
        if self._scan.left_out:
            every = len(self._scan.blocks) + self._scan.left_out
            found.append(f"{self._scan.left_out} of {every} blocks")
        if not drops_some(self.space):
            return found
        cuts = [cut for cut in self._cuts if cut not in beyond.windows]
        done = {one.dropped for one in tried if isinstance(one, WindowCut)}
        missing = sum(cut not in done for cut in cuts)
        if missing:
            found.append(f"{missing} of {len(self._cuts)} windows")
        if not any(isinstance(one, GreedyRemoval) and one.layers is None for one in tried):
            found.append("greedy removal")
        return found

    def untried(
        self, tried: Collection[TrialOrigin], holds: Holds | None
    ) -> dict[str, tuple[str, ...]]:
        """Return `left_out` and `beyond` of a summary: for want of room, and outside bounds."""
        beyond, every = self._beyond(holds), len(self._cuts) if drops_some(self.space) else 0
        some = [f"{len(beyond.windows)} of {every} windows"] if beyond.windows else []
        left_out = tuple(self.left_out(tried, beyond))
        return {"left_out": left_out, "beyond": (*map(origin_words, beyond.origins), *some)}

    def _beyond(self, holds: Holds | None) -> Beyond:
        if holds is None:
            return _NONE_BEYOND
        origins = [
            self._origin(one) for one in self._all if not holds(self._alone(one, 1.0).genome)
        ]
        cuts = self._cuts if drops_some(self.space) else []
        windows = [cut for cut in cuts if not holds(self._genome(self._all[0], cut))]
        return Beyond(tuple(origins), tuple(windows))

    @cached_property
    def _cuts(self) -> list[Cut]:
        return list(self._windows(self._all[0], math.inf).all)

    @property
    def _low(self) -> float:
        return min(max(self.cheapest, LEAST), 1.0)

    def _best(self, told: Sequence[ToldStart]) -> Composition:
        best = told[ranked(told)[0]].origin
        of = best.of if isinstance(best, PlanLayers | BlockInfluenceCut) else None
        return self._all[0] if of is None else of

    def _of(self, of: Composition) -> Composition | None:
        """Return the composition of an origin: None where all plans' layers are made alike."""
        return of if len(self._all) > 1 else None

    def _origin(self, of: Composition) -> TrialOrigin:
        """Return the origin of a composition alone."""
        again, named = always_again(self.space), self._of(of)
        if self.space.plan.stack is not None:
            return PlanLayers(of=named, stack=True, again=again)
        if drops_some(self.space):
            return BlockInfluenceCut(of=named, again=again)
        return PlanLayers(of=named, again=again)

    def _alone(self, of: Composition, share: float) -> Start:
        cut = self._of_middle(nested_cuts(self.space, self._scores(of)))
        return self._start(self._origin(of), of, cut, share)

    def _start(self, origin: TrialOrigin, of: Composition, cut: Cut, share: float) -> Start:
        return Start(origin, self._genome(of, cut), share)

    def _genome(self, of: Composition, cut: Cut) -> Genome:
        key = of, cut
        if key not in self._made:
            self._made[key] = composed(self.space, of, cut)
        return self._made[key]

    def _of_middle(self, cuts: Sequence[Cut]) -> Cut:
        return cuts[len(cuts) // 2]

    def _scores(self, of: Composition) -> CutScores:
        if isinstance(of, UniformMerge):
            of = of.model_copy(update={"coefficient": None})
        influence = self.influence.get(composition_words(of), self.influence.get("base"))
        if influence is None:
            middle = (self.space.layers - 1) * 2 / 3  # what is cut where nothing is known
            influence = [abs(position - middle) for position in range(self.space.layers)]
        return np.array([-one for one in influence], np.float64)


def _spread(sizes: Sequence[int], most: int = _SIZES) -> list[int]:
    """Some of the sizes: both ends, and what lies evenly between."""
    if len(sizes) <= most:
        return list(sizes)
    return [sizes[round(share * (len(sizes) - 1))] for share in np.linspace(0, 1, most)]


def ranked(told: Sequence[ToldStart]) -> list[int]:
    """Their numbers, the best first: by the mean of the ranks that they have by each objective.

    So they stay where they are when losses are measured otherwise. Failures come last.
    """
    losses = np.array([one.losses for one in told], np.float64).reshape(len(told), -1)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ranks = (losses[:, None] > losses[None]).sum(axis=1).mean(axis=-1)
    return [int(i) for i in np.argsort(ranks, kind="stable")]
