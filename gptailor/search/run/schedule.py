"""What is evaluated next: `Schedule`."""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

from gptailor.plan.stage import Stage
from gptailor.report.summary import BridgedTrials
from gptailor.search.run.asking import TOLD, Asking
from gptailor.search.run.finalists import chosen_finalists
from gptailor.search.run.origin import RandomPlan, StrategyPlan, TrialOrigin
from gptailor.search.run.trials import (
    BESIDE,
    FINAL,
    RANDOM,
    SEARCH,
    STARTS,
    Ledger,
    Trial,
    TrialRequest,
    as_numpy,
)
from gptailor.search.settings import Settings
from gptailor.search.space.genome import Genome

FINALISTS = 5
"""The most trials that are evaluated once more, bridged or healed, if nobody says how many."""
REPEATS = 20
"""Asks, and trials for each genome of one, that may give nothing new before a search ends."""
OTHERS = 1000
"""The number of the first random genome beside; those before it are of the search."""
EPSILON = 1e-9
"""What sums of shares may be off."""

ORDER = (STARTS, RANDOM, SEARCH, FINAL, BESIDE)
"""What is evaluated after what."""


@final
@dataclass(frozen=True)
class Budget:
    """What a search may spend: `trials` evaluations at full fidelity.

    A trial uses between `low` and `full` samples. `beside` asks for random search at the same
    cost, which is spent on top. `heals` says that the plan is healed, `wanted` how many finalists
    were asked for, `measured` what was spent before the first trial.
    """

    trials: int
    low: int
    full: int
    bridge: BridgedTrials | None = None
    beside: bool = False
    heals: bool = False
    wanted: int | None = None
    measured: float = 0.0

    @classmethod
    def of(cls, chosen: Settings, full: int) -> "Budget":
        """What a search may spend whose trials see so many samples at most."""
        low = chosen.fidelity[0] if chosen.fidelity else full
        named = chosen.bridge, chosen.compare_random, chosen.heals, chosen.finalists
        return cls(chosen.trials, low, full, *named)

    def record(self) -> dict[str, Any]:
        """What a search has spent that is over, as a study notes it."""
        asked = self.heals or self.wanted is not None
        final = f"{self.finalists} {self.final}" if asked else None
        return {"trials": self.trials, "beside": self.beside, "final": final}

    def samples(self, share: float) -> int:
        """The samples of a share that is asked for."""
        return min(max(round(share * self.full), self.low), self.full)

    @property
    def starts(self) -> float:
        """What starting plans may cost: half of all, what was measured for them included."""
        return max(self.trials / 2 - self.measured, 1.0)

    @property
    def random(self) -> int:
        """How many random plans are evaluated for comparison."""
        return max(min(self.trials // 12, 16), 1)

    @property
    def finalists(self) -> int:
        """How many trials are bridged, or bridged and healed, in the end."""
        if self.final is None:
            return 0
        return self.wanted or min(FINALISTS, max(self.trials // 10, 1))

    @property
    def kept(self) -> int:
        """What is kept of the budget for the end: for finalists, and the best starting plan."""
        return self.finalists + 1 if self.finalists else 0

    @property
    def final(self) -> Stage | None:
        """What the best trials are evaluated as once more; None if they aren't."""
        if self.heals:
            return "healed"
        return "bridged" if self.bridge == "finalists" else None

    def stage(self, samples: int) -> Stage:
        """What a trial with so many samples is evaluated as."""
        whole = self.bridge == "from-full" and samples == self.full
        return "bridged" if self.bridge == "each" or whole else "bare"


@final
class Start(NamedTuple):
    """A starting plan, and the share of all samples that it is to be evaluated on."""

    origin: TrialOrigin
    genome: Genome
    share: float


@final
class ToldStart(NamedTuple):
    """A starting plan that was evaluated: its losses by each objective, NaN after a failure."""

    origin: TrialOrigin
    genome: Genome
    share: float
    losses: tuple[float, ...]


@runtime_checkable
class StartSource(Protocol):
    """Starting plans, stage by stage."""

    def next(self, told: Sequence[ToldStart]) -> Sequence[Start]:
        """The next stage's plans, given all that were evaluated; none when they are over."""


@final
class Schedule:
    """Decides by the told trials alone, so that a later process goes on in the same way.

    When it is made it asks again what was asked before; what of that was not told yet is missing.
    The strategy is asked for the n-th time once all but the last `ahead` - 1 asks before were told,
    and it is told no more than those: who is quick changes nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        starts: StartSource,
        asking: Asking,
        *,
        ahead: int = 1,
    ) -> None:
        self.ahead = ahead
        self.ledger = ledger
        self.budget = budget
        self.starts = starts
        self.asking = asking
        self.retries = False
        self._postponed: list[TrialRequest] = []
        self._closed = False
        self._asked_after = 0
        seen = {t.request.ask: t.request.asked_after for t in ledger.of(SEARCH)}
        again = [one for ask, after in sorted(seen.items()) for one in self._requests(ask, after)]
        self.asks = max(seen, default=-1) + 1
        self._missing = [one for one in again if one.key not in ledger.keys]

    def next(self, *, idle: bool, waiting: Collection[int] = ()) -> list[TrialRequest]:
        """What to evaluate next; nothing if that can't be known before more is told.

        `idle` says that nothing is under way, `waiting` are asks that are. Nothing while idle is
        the end.
        """
        found: list[TrialRequest] = []
        if idle and not self.asks:
            found = self._starts()
            if not found and not self.ledger.of(SEARCH, FINAL, BESIDE):
                found = self._drawn(RANDOM, range(self.budget.random))
        if idle or self.asks:
            found = found or self._search(waiting)
        return found or (self._final() or self._beside() if idle else [])

    # ----------------------------------------------------------------------------- before the asks

    def _starts(self) -> list[TrialRequest]:
        if self.ledger.of(RANDOM, SEARCH, FINAL, BESIDE):
            return []
        told: list[Trial] = []
        for stage in itertools.count():
            wanted, whole = self._stage(stage, told)
            missing = [one for one in wanted if one.key not in self.ledger.keys]
            if missing:
                return missing
            if not wanted or not whole:
                break
            of_stage = [t for t in self.ledger.of(STARTS) if t.request.ask == stage]
            told += sorted(of_stage, key=lambda trial: trial.request.slot)
        return []

    def _stage(self, number: int, told: Sequence[Trial]) -> tuple[list[TrialRequest], bool]:
        """A stage's plans, as many as there is room for, and whether those are all."""
        budget = self.budget
        left = budget.starts - math.fsum(trial.share for trial in told) + EPSILON
        found: list[TrialRequest] = []
        for slot, start in enumerate(self.starts.next([self._told(trial) for trial in told])):
            samples = budget.samples(start.share)
            left -= samples / budget.full
            if left < 0:
                return found, False
            found.append(
                self._one(STARTS, number, slot, start.origin, start.genome, samples, len(told))
            )
        return found, True

    def _told(self, trial: Trial) -> ToldStart:
        losses = tuple(float(loss) for loss in self.ledger.losses([trial])[0])
        return ToldStart(trial.request.origin, trial.request.genome, trial.share, losses)

    def _drawn(self, phase: str, numbers: Iterable[int]) -> list[TrialRequest]:
        first = 0 if phase == RANDOM else OTHERS
        return [
            self._one(phase, 0, n, RandomPlan(), self.asking.random(first + n), self.budget.full)
            for n in numbers
            if (phase, 0, n) not in self.ledger.keys
        ]

    # ------------------------------------------------------------------------------- while it asks

    def _search(self, waiting: Collection[int]) -> list[TrialRequest]:
        """What was asked before and not told; else the next ask, if there is room for more."""
        self.retries = False
        if self._missing:
            found, self._missing = self._missing, []
            return found
        if self._postponed:
            if waiting:
                return []
            found, self._postponed = self._postponed, []
            self.retries = True
            return found
        if self.is_over or self._behind(waiting):
            return []
        until, self.asks = self._until, self.asks + 1
        return self._requests(self.asks - 1, until)

    def waits(self, waiting: Collection[int]) -> bool:
        """Whether the strategy would be asked if these asks of it had been told."""
        return bool(self.asks) and self._behind(waiting) and not self.is_over

    def _behind(self, waiting: Collection[int]) -> bool:
        return any(ask <= self.asks - self.ahead for ask in waiting)

    @property
    def is_over(self) -> bool:
        """Whether the strategy is asked no more, going by what it would be told."""
        if self._closed:
            return True
        told = [t for t in self.ledger.trials[: self._until] if t.request.phase in TOLD]
        left = self._left(told)
        return left < self.budget.low / self.budget.full or self._exhausted(told)

    @property
    def _until(self) -> int:
        """How many trials the strategy is told of when it is asked next."""
        before = self.asks - self.ahead
        told = (
            trial
            for trial in reversed(self.ledger.trials)
            if trial.request.phase in TOLD
            and (trial.request.phase != SEARCH or trial.request.ask <= before)
        )
        last = next(told, None)
        return max(self._asked_after, 0 if last is None else last.number + 1)

    def _requests(self, number: int, asked_after: int) -> list[TrialRequest]:
        origin = StrategyPlan(strategy=self.asking.strategy.name)
        samples = self.budget.samples
        self._asked_after = max(self._asked_after, asked_after)
        asked = self.asking.ask(number, asked_after)
        return [
            self._one(SEARCH, number, slot, origin, genome, samples(share), asked_after)
            for slot, (genome, share) in enumerate(asked)
        ]

    def postpone(self, requests: Sequence[TrialRequest]) -> None:
        """Ask for these again, before anything else, once it is known what all others cost."""
        self._postponed += requests

    def close(self) -> None:
        """Ask no more: what is left is too little for what is asked."""
        self._closed = True

    def room(self, requests: Sequence[TrialRequest]) -> float:
        """What is left for what was asked for now.

        Trials that were given up count in full if they were told after these were asked for, so
        that it is the same however quick workers are; not where all that was waited for.
        """
        asked = [one.asked_after for one in requests if one.phase == SEARCH]
        until = min(asked, default=0) if asked and not self.retries else len(self.ledger.trials)
        later = self.ledger.trials[until:]
        stopped = (t for t in later if t.stopped is not None and t.same_as is None)
        spared = math.fsum(t.request.samples / self.budget.full - t.share for t in stopped)
        return self.left - spared

    @property
    def left(self) -> float:
        """What starting plans, random ones and the strategy have left together."""
        return self._left(self.ledger.of(*TOLD))

    def _left(self, told: Sequence[Trial]) -> float:
        budget, spent = self.budget, self.ledger.cost(told)
        return budget.trials - budget.kept - budget.measured - spent + EPSILON

    @property
    def exhausted(self) -> bool:
        """Whether the strategy has long asked nothing but plans that are known."""
        return self._exhausted(self.ledger.trials)

    def _exhausted(self, told: Sequence[Trial]) -> bool:
        most = REPEATS * (1 + self.asking.strategy.population)
        last = [trial for trial in told if trial.request.phase == SEARCH][-most:]
        return len(last) == most and all(trial.same_as is not None for trial in last)

    # --------------------------------------------------------------------------------- in the end

    def _final(self) -> list[TrialRequest]:
        """The best of those that were chosen between, once more, repaired further."""
        final = self.budget.final
        if final is None:
            return []
        plans = {trial.plan for trial in self.ledger.of(FINAL) if trial.request.stage == final}
        best = chosen_finalists(self.ledger, self.budget.finalists, self.asking.distinct)
        chosen = (trial.request for trial in best if trial.plan not in plans)
        taken = {trial.request.slot for trial in self.ledger.of(FINAL)}
        free = (slot for slot in itertools.count() if slot not in taken)  # as in the first process
        return [
            self._one(FINAL, 0, slot, one.origin, one.genome, one.samples)
            for one, slot in zip(chosen, free, strict=False)
        ]

    def _beside(self) -> list[TrialRequest]:
        """Random search at the cost of what was done, as if none of its plans had been known."""
        fresh = self.ledger.fresh(BESIDE)
        last = self.ledger.of(BESIDE)[-4 * REPEATS :]
        if not self.budget.beside or (len(last) == 4 * REPEATS and set(fresh).isdisjoint(last)):
            return []
        spent = math.fsum(trial.share for trial in fresh)
        more = int(self.ledger.cost(self.ledger.of(STARTS, RANDOM, SEARCH)) - spent + EPSILON)
        free = (n for n in itertools.count() if (BESIDE, 0, n) not in self.ledger.keys)
        return self._drawn(BESIDE, itertools.islice(free, max(more, 0)))

    def _one(  # noqa: PLR0913, PLR0917 (all that a request is)
        self,
        phase: str,
        ask: int,
        slot: int,
        origin: TrialOrigin,
        genome: Genome,
        samples: int,
        after: int | None = None,
    ) -> TrialRequest:
        final = self.budget.final if phase == FINAL else None
        stage = final or self.budget.stage(samples)
        if after is None:
            after = len(self.ledger.of(*ORDER[: ORDER.index(phase)]))
        return TrialRequest(phase, ask, slot, origin, as_numpy(genome), samples, stage, after)
