"""Starting plans: plans that people make without a search, as genomes of a space, in stages.

Compositions are the base alone, each other model alone, and uniform merges of all models and of
two. Their layers are dropped in one of three ways: by block influence (ShortGPT, arXiv 2403.03853),
as the best contiguous window (arXiv 2403.17887), or by greedy removal from the base (SLEB, arXiv
2402.09025). If a space has cuts of several sizes, compositions have a cut of the middle size. The
best composition is then tried with each size, and each cut contains the next smaller one. Open
sizes of vocabulary, MLPs and experts are the largest; one plan for each has the smallest one, with
the fewest layers dropped. A plan's name contains the way of dropping, and the composition if the
space has several compositions.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, final

import numpy as np

from gptailor.plan.plan import CUTS, DropAny, RepeatWindow
from gptailor.plan.sites import drops_by_choice
from gptailor.plan.windows import Window, windows_of
from gptailor.searching.run.origin import (
    BestWindow,
    BlockInfluenceCut,
    BridgedCut,
    Composition,
    GreedyRemoval,
    ModelAlone,
    NothingDropped,
    PlanLayers,
    RivalPlan,
    SearchedRecipe,
    SmallestSize,
    StartRecipe,
    StrategyPlan,
    TrialOrigin,
    UniformMerge,
    WindowCut,
    composition_words,
    origin_words,
)
from gptailor.searching.run.schedule import Stages, Start
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical
from gptailor.searching.starts.compositions import (
    BASE_ALONE,
    composed,
    compositions,
    whole_name,
)
from gptailor.searching.starts.cuts import (
    LEAST,
    Cut,
    CutScores,
    contiguous,
    drops_some,
    nested_cuts,
    shortest_paths,
)
from gptailor.searching.starts.recipes import Recipes, cut_table

_MOST_ALONE = 5
"""Models alone that are evaluated in full, at most."""
_MERGES = 2
"""Uniform merges by the mean that are evaluated in full."""
_WINDOWS = 6.0
"""Evaluations at full fidelity that windows may cost together."""
_ENDS_FROM = 4
"""The least number of windows that include both ends of the model."""
_BEST_WINDOWS = 2
"""The windows that are evaluated in full, if all have one size."""
_SIZES = 4
"""The sizes of cuts that are evaluated in full, spread over all sizes."""
_OTHER_SIZES = 4.0
"""Evaluations at full fidelity that the other sizes may cost together."""
_USUAL_STRENGTH = 0.6
"""The coefficient of a uniform merge that is tried before larger and smaller ones."""
_MAYBE = (1 / 8, 1 / 4)
"""The shares of the `maybe drop` positions that are dropped, if the plan has no number."""


# ---------------------------------------------------------------------------------- the stages


@final
@dataclass(frozen=True, eq=False)
class Starts:
    """The starting plans of a space.

    `influence` is the block influence of each layer, by the name of a composition in `wholes`. A
    space that drops no layers has no influence. `removal` are the positions that `greedy_removal`
    removes from the base. A space with measured gaps has the cuts with the gaps that a bridge
    closes best. With `recipes` the best recipe is found first, with nothing dropped, and all cuts
    are of it. `cheapest` is the least share of all samples that a trial may use. `room` is the
    number of evaluations at full fidelity that all plans may cost together. If the room is too
    small for all plans, the plans with the greatest expected gain come first.
    """

    space: Space
    influence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    removal: Sequence[int] = ()
    cheapest: float = 1.0
    room: float = math.inf
    recipes: Recipes | None = None
    _recipe: list[Genome] = field(default_factory=list, init=False, repr=False)

    def stages(self) -> Stages:
        """Yield the plans of each stage, which depend on the results of the stages before alone.

        Losses count by their order alone.
        """
        glanced = self._glanced()
        glances = yield [self._alone(of, self._low) for of in glanced]
        whole = yield self._compositions(glanced, glances)
        full = [*whole]
        if self.recipes is not None:
            strategy = self.recipes.strategy
            spent = math.fsum(result.share for result in (*glances, *whole))
            origin = StrategyPlan(strategy=strategy.name)
            for number in range(int((self.recipes.room - spent + 1) / strategy.population)):
                asked = self.recipes.ask(number, full)
                results = yield [Start(origin, genome, 1.0, uncut=True) for genome in asked]
                full += results
                if not any(result.ahead for result in results):
                    break
        best = self._best(full)
        told = [*glances, *full]
        if self.recipes is not None and not self.bridged:
            told += yield [self._start(self._origin(best), best, self._influence_cut(best), 1.0)]
        told += yield self._smallest_sizes(best)
        window = None
        if drops_some(self.space):
            told += yield self._bridged(best)
            if not self.bridged:
                told += yield self._of_each_size(best)
            spent = math.fsum(result.share for result in told)
            asked_for = math.fsum(r.share for r in told if isinstance(r.origin, StrategyPlan))
            kept = self.recipes.asks - asked_for if self.recipes is not None else 0.0
            cuts = self._windows(best, self.room - kept - spent)
            windows = yield [
                self._start(WindowCut(of=self._of(best), dropped=cut), best, cut, self._low)
                for cut in cuts
            ]
            window = cuts[ranked(windows)[0]] if cuts else None
            yield self._best_windows(best, cuts, windows)
            yield self._removed(best)
        else:
            yield self._maybe(best)
        if self.recipes is not None:
            yield self._rivals(self.recipes, [*_best_first(whole), *_best_first(glances)], window)

    def focus(self, results: Sequence[Start]) -> Table | None:
        """Return the table of the cuts of the best recipe; None without separate recipes."""
        uncut = [result for result in results if result.uncut and result.share == 1.0]
        return cut_table(self.space, _best_first(uncut)[0].genome) if uncut else None

    def _rivals(
        self, recipes: Recipes, results: Sequence[Start], window: Cut | None
    ) -> list[Start]:
        """Return plans that a person would write: the best merge and the best model, usual cuts.

        The compositions in `results` are the best first.
        """
        tried = [result.origin.of for result in results if isinstance(result.origin, PlanLayers)]
        merges = [of for of in tried if isinstance(of, UniformMerge)]
        alone = [of for of in tried if isinstance(of, ModelAlone)]
        best: list[Composition] = [*merges[:1], *alone[:1]]
        plans = [(RivalPlan(of=of, cut="best window"), window) for of in best if window is not None]
        plans += [(RivalPlan(of=of, cut="block influence"), self._influence_cut(of)) for of in best]
        return [
            self._start(origin, origin.of, cut, self._low)
            for origin, cut in plans[: recipes.rivals]
        ]

    def _glanced(self) -> list[Composition]:
        """Return the compositions that are compared on few samples first.

        These are all if they cost little. Else, if the room allows not even the first ones in full,
        they are compared as far as it also allows one of them in full, the most promising first.
        """
        if self._low <= 1 / 2 and self._low * len(self._all) <= self.room / 4:
            return self._all
        in_full = self.recipes is None and len(self._models) < self._for_compositions
        if self._low > 1 / 2 or in_full:
            return []
        return self._promising()[: max(0, int((self._for_compositions - 1) / self._low))]

    @cached_property
    def _models(self) -> list[ModelAlone]:
        """The models alone, without the base."""
        return [of for of in self._all if isinstance(of, ModelAlone) and of != BASE_ALONE]

    @cached_property
    def _for_compositions(self) -> float:
        """The room for compositions. Cuts have the rest, or the recipes that a strategy asks for.

        If the rest is too small for one ask, compositions have all of the room for recipes. Without
        recipes they have half, or as much as the usual ones cost.
        """
        if self.recipes is not None:
            room, asks = self.recipes.room, self.recipes.asks
            return room - asks if asks + 1 >= self.recipes.strategy.population else room
        later = drops_some(self.space) or any(bit.subject.role == "drop" for bit in self.space.bits)
        usual = min(len(self._models), _MOST_ALONE) + (len(self._models) > 1)
        return max(self.room / 2, min(usual, self.room)) if later else self.room

    def _promising(self) -> list[Composition]:
        """Return the compositions in the order that a person would try.

        First come the mean of all models and each model alone, then the usual coefficient, then the
        base, other coefficients, and merges of two models.
        """
        merges = [of for of in self._all if isinstance(of, UniformMerge)]
        whole = sorted((of for of in merges if of.every), key=_strength)
        base = [of for of in self._all if of == BASE_ALONE]
        pairs = [of for of in merges if not of.every]
        return [*whole[:1], *self._models, *whole[1:2], *base, *whole[2:], *pairs]

    def _compositions(
        self, glanced: Sequence[Composition], glances: Sequence[Start]
    ) -> list[Start]:
        """Return the compositions that are evaluated in full, by their glances."""
        order = [glanced[i] for i in ranked(glances)]
        ordered = list(dict.fromkeys([*order, *self._promising()]))
        alone = [of for of in ordered if isinstance(of, ModelAlone)]
        means = [of for of in ordered if isinstance(of, UniformMerge) and of.coefficient is None]
        left_out = {*alone[_MOST_ALONE - 1 :], *means[_MERGES:]} - {self._all[0]}
        room = self._for_compositions
        if self._low * len(self._all) > self.room / 4:  # else all glances together cost little
            room -= self._low * len(glanced)
        chosen = [of for of in self._all if of not in left_out]
        most = max(1, int(min(room, len(chosen))))
        if most < len(chosen):
            chosen = [of for of in ordered if of in chosen][:most]
        return [self._alone(of, 1.0) for of in chosen]

    def _smallest_sizes(self, best: StartRecipe) -> list[Start]:
        """Return the best composition with each open size of a cut at its smallest, one at a time.

        The fewest layers are dropped. Short room leaves the last sizes out.
        """
        genome = self._genome(best, nested_cuts(self.space, self._scores(best))[0])
        starts = []
        for number, pick in enumerate(self.space.picks):
            if (name := pick.subject.used_as) in CUTS:
                picks = genome.picks.copy()
                picks[number] = pick.options.index(min(pick.options))
                smaller = canonical(self.space.table, genome._replace(picks=picks))
                origin = SmallestSize(of=self._of(best), cut=name, size=min(pick.options))
                starts.append(Start(origin, smaller, 1.0))
        return starts[: int(min(self.room / 6, len(starts)))]

    @cached_property
    def bridged(self) -> Sequence[Cut]:
        """Return the cuts with gaps that a bridge closes best: the best three, or one of each size.

        Return () without measured gaps, and for a space with several lists of drops.
        """
        errors = self.space.table.gap_errors
        choices = [choice for _, choice in drops_by_choice(self.space.plan)]
        if errors is None or len(choices) != 1 or not isinstance(choices[0], DropAny):
            return ()
        sizes = [len(cut) for cut in nested_cuts(self.space, np.zeros(self.space.layers))]
        paths = [shortest_paths(errors, choices[0].among, size) for size in _spread(sizes)]
        return paths[0] if len(sizes) == 1 else [cuts[0] for cuts in paths if cuts and cuts[0]]

    @cached_property
    def _first_bridged(self) -> Cut | None:
        """Return the bridged cut of the middle size, in place of a single composition's cut.

        None for a space with several compositions, with repeated blocks or with one size.
        """
        if len(self._all) > 1 or self.recipes is not None or _always_again(self.space):
            return None
        several = len({len(cut) for cut in self.bridged}) > 1
        return self._of_middle(self.bridged) if several else None

    def _bridged(self, best: StartRecipe) -> list[Start]:
        """Return the best composition with the cuts that a bridge closes best.

        Short room allows one cut only, or the smallest and the largest one. The plans are
        evaluated in full, as each plan may be bridged in the end.
        """
        of = self._of(best) if self.recipes is not None else None
        several = len({len(cut) for cut in self.bridged}) > 1
        ranks: Sequence[Literal[1, 2, 3]] = [1] * len(self.bridged) if several else (1, 2, 3)
        plans = [
            self._start(
                BridgedCut(of=of, rank=rank, layers=len(cut) if several else None), best, cut, 1.0
            )
            for rank, cut in zip(ranks, self.bridged, strict=False)
        ]
        if several:
            others = [plan for plan in plans if plan.origin != self._origin(best)]
            most = max(2, int(min(len(others), self.room / 2)))
            return [others[at] for at in _spread(range(len(others)), most)]
        return plans if len(plans) <= self.room / 3 else plans[:1]

    def _windows(self, of: StartRecipe, room: float) -> list[Cut]:
        """Return windows, the least influence first. Leave some out if all cost too much.

        Half of the room is for evaluating the best windows in full, and for later stages.
        """
        cuts = contiguous(self.space, self._scores(of))
        most = max(1, int(min(_WINDOWS, room / 2) / self._low))
        return cuts[:most] if self.recipes is None else _with_ends(cuts, most)

    def _best_windows(
        self, best: StartRecipe, windows: Sequence[Cut], results: Sequence[Start]
    ) -> list[Start]:
        """Return the best windows in full, and the best window on the base.

        If windows have several sizes, some sizes have their best window. If all windows were in
        full already, only the best window is returned.
        """
        order = ranked(results)
        several = len(nested_cuts(self.space, self._scores(best))) > 1
        if several:
            chosen = _spread(sorted({len(cut) for cut in windows}))
            order = [next(i for i in order if len(windows[i]) == size) for size in chosen]
        else:
            order = order[: _BEST_WINDOWS if self._low < 1 else 1]
        tried = [(best, windows[i]) for i in order]
        base = self._all[0]
        if best != base and order and self.recipes is None:
            tried.append((base, tried[len(order) // 2 if several else 0][1]))

        def origin(of: StartRecipe, cut: Cut) -> TrialOrigin:
            if several or cut == tried[0][1]:
                return BestWindow(of=self._of(of), layers=len(cut) if several else None)
            return WindowCut(of=self._of(of), dropped=cut)

        return [self._start(origin(of, cut), of, cut, 1.0) for of, cut in tried]

    def _removed(self, best: StartRecipe) -> list[Start]:
        if not self.removal:
            return []
        cut = self._of_middle(nested_cuts(self.space, self._by_removal(best)))
        both = dict.fromkeys([best] if self.recipes is not None else [best, self._all[0]])
        return [self._start(GreedyRemoval(of=self._of(of)), of, cut, 1.0) for of in both]

    def _of_each_size(self, best: StartRecipe) -> list[Start]:
        """Return the best composition with nested cuts of all sizes, first some sizes in full.

        All other sizes are tried on few samples, the fewest layers first, within the room.
        """
        by = GreedyRemoval if self.removal else BlockInfluenceCut
        scores = self._by_removal(best) if self.removal else self._scores(best)
        cuts = nested_cuts(self.space, scores)
        full = _spread([len(cut) for cut in cuts], max(2, int(min(_SIZES, self.room / 4))))
        first = [cut for cut in cuts if len(cut) in full]
        further = [cut for cut in cuts if len(cut) not in full]
        further = further[: int(min(_OTHER_SIZES, self.room / 4) / self._low)]
        of, middle = self._of(best), self._of_middle(cuts)
        return [
            self._start(
                by(of=of, layers=len(cut)) if cut else NothingDropped(of=of),
                best,
                cut,
                1.0 if cut in first else self._low,
            )
            for cut in [*first, *further]
            if cut != middle
        ]

    def _by_removal(self, best: StartRecipe) -> CutScores:
        """Return scores that drop positions by greedy removal first, then by influence."""
        scores = self._scores(best) - 1e9
        scores[list(self.removal)] = -np.arange(len(self.removal), dtype=np.float64)
        return scores

    def _maybe(self, best: StartRecipe) -> list[Start]:
        """Return the best recipe without some of the layers that may be dropped."""
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

    # --------------------------------------------------------------------------------- shared parts

    @cached_property
    def _all(self) -> list[Composition]:
        return compositions(self.space, strengths=self.recipes is not None)

    def untried(
        self, tried: Collection[TrialOrigin], holds: Callable[[Genome], bool] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Return `left_out` and `beyond` of a summary: plans without room, and out of bounds.

        `tried` are the origins of trials. `holds` tests whether a genome's plan is within bounds.
        """
        tried, base = {*tried}, self._all[0]
        cuts = contiguous(self.space, self._scores(base)) if drops_some(self.space) else []
        outside = [of for of in self._all if holds and not holds(self._alone(of, 1.0).genome)]
        beyond = [cut for cut in cuts if holds and not holds(self._genome(base, cut))]
        if self.recipes is None:
            origins = [self._origin(of) for of in self._all if of not in outside]
            left_out = [origin_words(origin) for origin in origins if origin not in tried]
        else:
            compared = {origin.of for origin in tried if isinstance(origin, PlanLayers)}
            missed = [composition_words(of) for of in self._all if self._of(of) not in compared]
            words = f"{len(missed)} of {len(self._all)} uncut plans ({', '.join(missed)})"
            left_out = [words] * bool(missed)
        if cuts:
            done = {origin.dropped for origin in tried if isinstance(origin, WindowCut)}
            missing = sum(cut not in done for cut in cuts if cut not in beyond)
            left_out += [f"{missing} of {len(cuts)} windows"] * bool(missing)
            removed = any(isinstance(o, GreedyRemoval) and o.layers is None for o in tried)
            left_out += ["greedy removal"] * (not removed and not self.space.plan.bridges)
        names = [origin_words(self._origin(of)) for of in outside]
        names += [f"{len(beyond)} of {len(cuts)} windows"] * bool(beyond)
        return {"left_out": tuple(left_out), "beyond": tuple(names)}

    @property
    def _low(self) -> float:
        return min(max(self.cheapest, LEAST), 1.0)

    def _best(self, results: Sequence[Start]) -> StartRecipe:
        """Return the best recipe, which cuts are tried with: a composition or a searched one."""
        best = _best_first(results)[0]
        match best.origin:
            case PlanLayers(of=of) | BlockInfluenceCut(of=of) | BridgedCut(of=of):
                return of or self._all[0]
            case _:
                self._recipe[:] = [best.genome]
                return SearchedRecipe()

    def _of(self, of: StartRecipe) -> StartRecipe | None:
        """Return the composition of an origin, or None if the space has only one composition."""
        return of if len(self._all) > 1 else None

    def _origin(self, of: StartRecipe) -> TrialOrigin:
        """Return the origin of a composition alone."""
        again, composition = _always_again(self.space), self._of(of)
        if self._first_bridged is not None:
            return BridgedCut(rank=1, layers=len(self._first_bridged))
        if drops_some(self.space):
            return BlockInfluenceCut(of=composition, again=again)
        stack = self.space.plan.stack is not None
        return PlanLayers(of=composition, stack=stack, again=again)

    def _alone(self, of: Composition, share: float) -> Start:
        """Return a composition with nothing dropped, or with its usual cut.

        The cut has the layers of least influence, or is the first bridged one.
        """
        if self.recipes is not None:
            return Start(PlanLayers(of=self._of(of)), self.recipes.of(of), share, uncut=True)
        cut = self._first_bridged
        return self._start(self._origin(of), of, cut or self._influence_cut(of), share)

    def _influence_cut(self, of: StartRecipe) -> Cut:
        return self._of_middle(nested_cuts(self.space, self._scores(of)))

    def _start(self, origin: TrialOrigin, of: StartRecipe, cut: Cut, share: float) -> Start:
        return Start(origin, self._genome(of, cut), share)

    def _genome(self, of: StartRecipe, cut: Cut) -> Genome:
        if self.recipes is not None:
            recipe = self._recipe[0] if isinstance(of, SearchedRecipe) else self.recipes.of(of)
            return self.recipes.with_cut(recipe, cut)
        assert not isinstance(of, SearchedRecipe), "a space without separate recipes"
        return composed(self.space, of, cut)

    def _of_middle(self, cuts: Sequence[Cut]) -> Cut:
        return cuts[len(cuts) // 2]

    def _scores(self, of: StartRecipe) -> CutScores:
        name = "" if isinstance(of, SearchedRecipe) else whole_name(of)
        base = self.influence.get("base", np.zeros(self.space.layers))  # where nothing is dropped
        return -np.array(self.influence.get(name, base), np.float64)


def _always_again(space: Space) -> tuple[Window, ...]:
    """Return the blocks that each plan of the space repeats, as they are by default."""
    return tuple(
        next(windows_of(repeat.count, repeat.among))
        for repeat in space.plan.repeats
        if isinstance(repeat, RepeatWindow) and not repeat.maybe
    )


def _strength(of: UniformMerge) -> float:
    """Return a sort key: how far a merge's coefficient is from the middle of the usual ones."""
    return 0.0 if of.coefficient is None else abs(of.coefficient - _USUAL_STRENGTH)


def _with_ends(windows: list[Cut], most: int) -> list[Cut]:
    """Return the first `most` windows, the last two replaced by both ends if these are missing.

    Without a result of either end a strategy can't know that the end's layers have to stay.
    """
    ends = [min(windows, key=lambda cut: cut[0]), max(windows, key=lambda cut: cut[-1])]
    chosen = windows[:most]
    missing = [cut for cut in ends if cut not in chosen and len(chosen) >= _ENDS_FROM]
    return [*chosen[: len(chosen) - len(missing)], *missing]


def _spread(sizes: Sequence[int], most: int = _SIZES) -> list[int]:
    """Return at most `most` of the sizes, evenly spread, with both ends."""
    shares = np.linspace(0, 1, most)
    return list(dict.fromkeys(sizes[round(share * (len(sizes) - 1))] for share in shares))


def _best_first(results: Sequence[Start]) -> list[Start]:
    return [results[number] for number in ranked(results)]


def ranked(results: Sequence[Start]) -> list[int]:
    """Return the numbers of starts, the best first: by the mean of their ranks by each objective.

    Ranks don't depend on the scale of losses. Failures come last.
    """
    if not results:
        return []
    losses = np.array([result.losses for result in results], np.float64).reshape(len(results), -1)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ranks = (losses[:, None] > losses[None]).sum(axis=1).mean(axis=-1)
    return [int(i) for i in np.argsort(ranks, kind="stable")]
