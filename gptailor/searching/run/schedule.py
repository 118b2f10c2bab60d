"""The order of evaluations: `Schedule`."""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeAlias, final, runtime_checkable

from gptailor.searching.run.asking import TOLD, Asking
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.finalists import chosen_finalists
from gptailor.searching.run.origin import RandomPlan, RivalPlan, StrategyPlan, TrialOrigin
from gptailor.searching.run.trials import (
    FINAL,
    ORDER,
    RANDOM,
    RECIPES,
    SEARCH,
    STARTS,
    Phase,
    Trial,
    TrialRequest,
    as_numpy,
)
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.table import Table

REPEATS = 20
"""Asks, and trials for each genome of an ask, that may give nothing new before a search ends."""
EPSILON = 1e-9
"""The rounding error of sums of shares."""

SPENDING = (RECIPES, *TOLD)
"""The phases that share a budget: all before the finalists."""


@final
class Start(NamedTuple):
    """A starting plan, and the share of all samples that it is to be evaluated on.

    A plan that is `uncut` is evaluated with nothing dropped: its recipe alone. As a result it has
    its `losses` by each objective, NaN after a failure, and the share that was used. `ahead` tells
    whether it is better than all uncut plans of earlier stages by more than one standard error.
    """

    origin: TrialOrigin
    genome: Genome
    share: float
    uncut: bool = False
    losses: tuple[float, ...] = ()
    ahead: bool = False


Stages: TypeAlias = Generator[list[Start], list[Start], None]
"""Starting plans, stage by stage; a stage's plans are sent back as results."""


def next_stage(stages: Stages, results: list[Start] | None) -> list[Start]:
    """Return the next stage with plans, after the results of the last one; [] at the end."""
    try:
        plans = next(stages) if results is None else stages.send(results)
        while not plans:
            plans = stages.send([])
    except StopIteration:
        return []
    return plans


@runtime_checkable
class StartSource(Protocol):
    """Starting plans, stage by stage."""

    def stages(self) -> Stages:
        """Yield the plans of each stage, and take its results."""

    def focus(self, results: Sequence[Start]) -> Table | None:
        """Return the table that a strategy searches after these plans; None: the space's own."""


@final
class Schedule:
    """The next requests by the told trials alone, so that a later process goes on in the same way.

    A new schedule repeats all earlier asks; requests among them that were not told yet are missing.
    The strategy is asked for the n-th time once all but the last `ahead` - 1 asks before were told,
    and it receives no more results: the speed of workers changes nothing.
    """

    def __init__(
        self, budget: Budget, starts: StartSource, asking: Asking, workers: int = 1
    ) -> None:
        self.ahead = 1 if workers == 1 else 1 + -(-workers // asking.strategy.population)
        self.ledger = ledger = asking.ledger
        self.budget = budget
        self.starts = starts
        self.asking = asking
        self.retries = False
        self._postponed: list[TrialRequest] = []
        self._closed = False
        self._asked_after = 0
        asked_after = {t.request.ask: t.request.asked_after for t in ledger.of(SEARCH)}
        asks = (self._requests(ask, after) for ask, after in sorted(asked_after.items()))
        again = list(itertools.chain.from_iterable(asks))
        self.asks = max(asked_after, default=-1) + 1
        self._missing = [request for request in again if request.key not in ledger.keys]

    def next(self, *, idle: bool, waiting: Collection[int] = ()) -> list[TrialRequest]:
        """Return the next requests; empty if they depend on trials that aren't told yet.

        `idle` means that nothing is under way, `waiting` are asks that are. No requests while idle
        are the end.
        """
        requests: list[TrialRequest] = []
        if idle and not self.asks:
            if not self.ledger.of(RANDOM, SEARCH, FINAL):
                requests = self._start_requests()
            if not requests and not self.ledger.of(SEARCH, FINAL):
                requests = self._drawn()
        if idle or self.asks:
            requests = requests or self._search(waiting)
        return requests or (self._final() if idle else [])

    # ----------------------------------------------------------------------------- before the asks

    def _start_requests(self) -> list[TrialRequest]:
        """Return the requests that the next stage of starting plans misses; [] after the last one.

        A stage without room for all of its plans is the last one, unless recipes are separate: then
        plans without room count as failures, and later stages follow. With another budget than an
        earlier process had, a stage may have other plans, so trials are found by their evaluations.
        Plans beyond bounds count as failures that cost nothing.
        """
        stages, results, bounds = self.starts.stages(), None, self.asking.within
        shares, asked_after, recipes = list[float](), 0, list[Trial]()
        unused: dict[Hashable, deque[Trial]] = defaultdict(deque)
        for trial in self.ledger.of(RECIPES, STARTS):
            unused[_evaluated(trial.request)].append(trial)
        for stage in itertools.count():
            starts = next_stage(stages, results)
            within = {
                slot: start
                for slot, start in enumerate(starts)
                if bounds is None or start.uncut or bounds.holds(start.genome)
            }
            requests = self._stage(stage, within, math.fsum(shares), asked_after)
            by_slot: dict[int, Trial] = {}
            for request in requests:
                if alike := unused[_evaluated(request)]:
                    by_slot[request.slot] = alike.popleft()
            missing = [request for request in requests if request.slot not in by_slot]
            if missing:
                used = {slot for _, ask, slot in self.ledger.keys if ask == stage}
                free = (slot for slot in itertools.count() if slot not in used)
                return [replace(r, slot=slot) for r, slot in zip(missing, free, strict=False)]
            if not starts or (len(requests) < len(within) and not self.budget.separate):
                return []
            asked_after += len(by_slot)
            best = self.ledger.best(recipes)
            results = [
                self._result(start, by_slot.get(slot), best) for slot, start in enumerate(starts)
            ]
            recipes += [
                trial for slot, trial in by_slot.items() if starts[slot].uncut and trial.full
            ]
            shares += [result.share for result in results]
        raise AssertionError("stages end")

    def _stage(
        self, number: int, starts: Mapping[int, Start], spent: float, asked_after: int
    ) -> list[TrialRequest]:
        """Return a stage's requests that there is room for. Rivals have room of their own."""
        budget = self.budget
        remaining = budget.starts - spent + EPSILON
        requests: list[TrialRequest] = []
        for slot, start in starts.items():
            samples = budget.samples(start.share)
            rival = isinstance(start.origin, RivalPlan)
            remaining -= 0.0 if rival else samples / budget.full
            if remaining >= 0 or (rival and budget.rivals):
                phase: Phase = RECIPES if start.uncut else STARTS
                requests.append(
                    self._request(
                        phase, number, slot, start.origin, start.genome, samples, asked_after
                    )
                )
            elif not budget.separate:
                break
        return requests

    def _result(self, start: Start, trial: Trial | None, best: Trial | None = None) -> Start:
        if trial is None:
            return start._replace(share=0.0, losses=(math.nan,) * len(self.ledger.aims))
        losses = tuple(float(loss) for loss in self.ledger.losses([trial])[0])
        ahead = best is not None and self.ledger.is_ahead(trial, best)
        return start._replace(share=trial.share, losses=losses, ahead=ahead)

    def _take_focus(self) -> None:
        """Give the strategy the space that the starting plans leave open, before its first ask."""
        if self.budget.separate and not self.asking.focused:
            uncut = sorted(self.ledger.of(RECIPES), key=lambda trial: trial.request.key)
            results = [
                self._result(Start(t.request.origin, t.request.genome, t.share, uncut=True), t)
                for t in uncut
            ]
            if (table := self.starts.focus(results)) is not None:
                self.asking.focus(table)

    def _drawn(self) -> list[TrialRequest]:
        self._take_focus()
        return [
            self._request(RANDOM, 0, n, RandomPlan(), self.asking.random(n), self.budget.full)
            for n in range(self.budget.random)
            if (RANDOM, 0, n) not in self.ledger.keys
        ]

    # ------------------------------------------------------------------------------- while it asks

    def _search(self, waiting: Collection[int]) -> list[TrialRequest]:
        """Return requests asked before and not told; else the next ask, if there is room."""
        self.retries = False
        if self._missing:
            requests, self._missing = self._missing, []
            return requests
        if self._postponed:
            if waiting:
                return []
            requests, self._postponed = self._postponed, []
            self.retries = True
            return requests
        if self.is_over or self._behind(waiting):
            return []
        until, self.asks = self._until, self.asks + 1
        return self._requests(self.asks - 1, until)

    def waits(self, waiting: Collection[int]) -> bool:
        """Return whether the strategy would be asked if these asks of it had been told."""
        return bool(self.asks) and self._behind(waiting) and not self.is_over

    def _behind(self, waiting: Collection[int]) -> bool:
        return any(ask <= self.asks - self.ahead for ask in waiting)

    @property
    def is_over(self) -> bool:
        """Return whether the strategy is not asked again, by the trials that it would be told."""
        if self._closed:
            return True
        trials = [t for t in self.ledger.trials[: self._until] if t.request.phase in SPENDING]
        remaining = self._left(trials)
        return remaining < self.budget.low / self.budget.full or self.exhausted(trials)

    @property
    def _until(self) -> int:
        """The number of finished trials that the strategy knows at its next ask."""
        before = self.asks - self.ahead
        trials = (
            trial
            for trial in reversed(self.ledger.trials)
            if trial.request.phase in TOLD
            and (trial.request.phase != SEARCH or trial.request.ask <= before)
        )
        last = next(trials, None)
        return max(self._asked_after, 0 if last is None else last.number + 1)

    def _requests(self, number: int, asked_after: int) -> list[TrialRequest]:
        origin = StrategyPlan(strategy=self.asking.strategy.name)
        samples = self.budget.samples
        self._asked_after = max(self._asked_after, asked_after)
        self._take_focus()
        asked = self.asking.ask(number, asked_after)
        return [
            self._request(SEARCH, number, slot, origin, genome, samples(share), asked_after)
            for slot, (genome, share) in enumerate(asked)
        ]

    def leave(self, requests: Sequence[TrialRequest], *, for_good: bool) -> None:
        """Leave requests beyond the budget until the cost of all others is known, or for good.

        The first are asked for again, before anything else. After the second the strategy is asked
        no more.
        """
        self._closed |= for_good
        self._postponed += [] if for_good else requests

    def room(self, requests: Sequence[TrialRequest]) -> float:
        """Return the remaining budget for these requests.

        Trials that were given up count in full if they were told after these were asked for, so
        that the result doesn't depend on the speed of workers. They don't where all were waited
        for.
        """
        asked = [request.asked_after for request in requests if request.phase == SEARCH]
        until = min(asked, default=0) if asked and not self.retries else len(self.ledger.trials)
        later = self.ledger.trials[until:]
        stopped = (t for t in later if t.stopped is not None and t.same_as is None)
        spared = math.fsum(t.request.samples / self.budget.full - t.share for t in stopped)
        return self._left(self.ledger.of(*SPENDING)) - spared

    def _left(self, trials: Sequence[Trial]) -> float:
        """Return the remaining budget of all phases before the finalists, after these trials."""
        budget, spent = self.budget, self.ledger.cost(trials)
        return budget.trials - budget.kept - budget.measured - spent + EPSILON

    def exhausted(self, trials: Sequence[Trial]) -> bool:
        """Return whether the strategy has long asked nothing but plans that are known."""
        most = REPEATS * (1 + self.asking.strategy.population)
        last = [trial for trial in trials if trial.request.phase == SEARCH][-most:]
        return len(last) == most and all(trial.same_as is not None for trial in last)

    # --------------------------------------------------------------------------------- in the end

    def _final(self) -> list[TrialRequest]:
        """Return requests for the best chosen trials, once more and repaired further."""
        final = self.budget.final
        if final is None:
            return []
        plans = {trial.plan for trial in self.ledger.of(FINAL) if trial.request.stage == final}
        best = chosen_finalists(self.ledger, self.budget.finalists, self.asking.distinct)
        chosen = (trial.request for trial in best if trial.plan not in plans)
        used = {trial.request.slot for trial in self.ledger.of(FINAL)}
        free = (slot for slot in itertools.count() if slot not in used)  # as in the first process
        return [
            self._request(FINAL, 0, slot, request.origin, request.genome, self.budget.full)
            for request, slot in zip(chosen, free, strict=False)
        ]

    def _request(  # noqa: PLR0913, PLR0917 (all that a request is)
        self,
        phase: Phase,
        ask: int,
        slot: int,
        origin: TrialOrigin,
        genome: Genome,
        samples: int,
        after: int | None = None,
    ) -> TrialRequest:
        final = self.budget.final if phase == FINAL else None
        stage = "uncut" if phase == RECIPES else final or self.budget.stage(samples)
        if after is None:
            after = len(self.ledger.of(*ORDER[: ORDER.index(phase)]))
        return TrialRequest(phase, ask, slot, origin, as_numpy(genome), samples, stage, after)


def _evaluated(request: TrialRequest) -> Hashable:
    """Return the evaluated plan of a starting plan's request; equal requests have equal scores."""
    return request.phase, request.samples, *(genes.tobytes() for genes in request.genome)
