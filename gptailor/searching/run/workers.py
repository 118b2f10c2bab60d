"""Evaluation of plans, in this process or on several workers at the same time.

Ctrl-C ends it between two events: `interruptible`.
"""

import hashlib
import math
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from statistics import median
from types import FrameType, FunctionType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, final, runtime_checkable

from gptailor.evaluation.scores import Failure, Outcome, Race, Score
from gptailor.lang.format import format_plan
from gptailor.plan.doors import Door
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run import trials
from gptailor.searching.run.incumbent import race_of
from gptailor.searching.run.scores import read_outcomes

_Event = TypeVar("_Event")
_LOSSES = 3
"""The number of workers lost over one plan that make it a failure."""
PATIENCE = 60.0
"""Seconds that a free worker waits at least before trials are told out of the order of asking."""
_TIMES = 4
"""The number of usual times of another worker's task that a free worker waits at least."""
BASE = "base"
"""The key of the uncut base's plan, instead of a digest."""

EvaluatePlans: TypeAlias = Callable[..., Iterator[tuple[int, tuple[Outcome, ...]]]]
"""`evaluate(plans, samples, stage=..., race=...)` evaluates plans on the search's first samples.

A `stage` tells whether plans are bridged and healed. In a `race`, if there is one, plans that lose
have scores of fewer samples. It yields the number of a plan among `plans` with its outcomes, one
for each objective, in any order. An error of one plan is its outcome; `evaluate` raises errors that
concern all plans.
"""


@final
@dataclass(eq=False)
class _PendingRequest:
    """A trial request that has no trial yet, with its plan. A `late` one is not waited for."""

    request: trials.TrialRequest
    plan: Plan
    key: trials.EvaluationKey
    late: bool = False


@final
@dataclass(eq=False)
class Task:
    """Plans for one worker, on equally many samples, each with the key of its evaluation."""

    number: int
    plans: tuple[Plan, ...]
    samples: int
    stage: Stage
    keys: tuple[trials.EvaluationKey, ...]
    race: Race | None = None


@final
class TaskOutcome(NamedTuple):
    """The outcomes of one plan of a task, at that place, and the seconds that they took."""

    task: int
    place: int
    outcomes: tuple[Outcome, ...]
    seconds: float


@final
class Done(NamedTuple):
    """A task is over, and its worker is free."""

    task: int


@final
class Lost(NamedTuple):
    """A worker was lost, and with it the missing outcomes of its task."""

    task: int


WorkerEvent = TaskOutcome | Done | Lost


@runtime_checkable
class Workers(Protocol):
    """Evaluate `count` tasks at the same time."""

    @property
    def count(self) -> int:
        """The number of tasks that may be given at once."""

    def submit(self, task: Task) -> None:
        """Begin a task; at most `count` are open at a time."""

    def next(self, longest: float | None = None) -> WorkerEvent | None:
        """Wait for the first event, but no longer than this many seconds."""


CLUSTERS: Door[Callable[..., AbstractContextManager[Workers]]] = Door(
    "clusters", "cluster", FunctionType, {}
)
"""Functions that return workers on other machines, by the option that names their cluster: `ray`.

They are called with the trials, the settings, the resources and a receiver of progress.
"""


@final
class Alone:
    """A worker in this process, which works while it is waited for."""

    count = 1

    def __init__(self, evaluate: EvaluatePlans) -> None:
        self.evaluate = evaluate
        self._task = -1
        self._outcomes: Iterator[tuple[int, tuple[Outcome, ...]]] = iter(())

    def submit(self, task: Task) -> None:
        """Begin a task; nothing is evaluated yet."""
        self._task = task.number
        self._outcomes = self.evaluate(task.plans, task.samples, stage=task.stage, race=task.race)

    def next(self, longest: float | None = None) -> WorkerEvent:
        """Return the next plan's outcome, which takes as long as it takes."""
        begun = time.perf_counter()
        outcome = next(self._outcomes, None)
        if outcome is None:
            return Done(self._task)
        return TaskOutcome(self._task, *outcome, time.perf_counter() - begun)


@final
class UnderWay:
    """Requests in the order of asking that were not told yet, and the tasks that workers are at.

    Requests in the `queue` have no worker yet.

    Trials are told in the order of asking where several workers are at work, so that a search's
    course doesn't depend on their speed. A `late` request is told when its outcome comes. `base` is
    the plan of the uncut base, which losses are measured by. With `races` a strategy's trials are
    given up where they have lost.
    """

    def __init__(
        self,
        ledger: trials.Ledger,
        base: Plan,
        workers: int,
        patience: float = PATIENCE,
        *,
        races: bool = False,
    ) -> None:
        self.ledger = ledger
        self.base = base
        self.workers = workers
        self.patience = patience
        self.races = races
        self.waiting: list[_PendingRequest] = []
        self.tasks: dict[int, Task] = {}
        self.queue: deque[_PendingRequest] = deque()
        self._outcomes: dict[trials.EvaluationKey, tuple[tuple[Outcome, ...], float]] = {}
        self._losses: Counter[trials.EvaluationKey] = Counter()
        self._numbers = count(1)
        self._part = 1
        self._speeds: list[float] = []

    @property
    def free(self) -> bool:
        """Return whether a worker has nothing to do, and may have something."""
        of_base = any(task.keys[0].plan == BASE for task in self.tasks.values())
        return not of_base and len(self.tasks) < self.workers

    @property
    def asks(self) -> set[int]:
        """The strategy's asks that the search still has to wait for."""
        of_search = (pending for pending in self.waiting if pending.request.phase == trials.SEARCH)
        return {pending.request.ask for pending in of_search if not pending.late}

    def fill(
        self, asked: Iterable[tuple[trials.TrialRequest, Plan]], budget: float
    ) -> list[trials.TrialRequest]:
        """Take in requests with their plans; return a strategy's requests beyond the `budget`.

        A plan that is known or under way isn't evaluated again.
        """
        keys = {pending.key for pending in self.waiting}
        budget -= math.fsum(self._share(key) for key in keys if key not in self.ledger.found)
        beyond: list[trials.TrialRequest] = []
        for request, plan in asked:
            digest = hashlib.sha256(format_plan(plan).encode()).hexdigest()
            key = trials.EvaluationKey(digest, request.samples, request.stage)
            pending = _PendingRequest(request, plan, key)
            fresh = not (key in keys or self._known(key))
            costly = fresh and request.phase == trials.SEARCH and budget < self._share(key)
            if costly or (beyond and self.races):  # later requests wait too: the order stays
                beyond.append(request)
                continue
            if fresh:
                budget -= self._share(key)
                keys.add(key)
                self.queue.append(pending)
            self.waiting.append(pending)
        self._part = max(1, -(-len(self.queue) // self.workers))
        return beyond

    def task(self) -> Task:
        """Begin the next task of a free worker: some plans on equally many samples.

        It is the uncut base where its scores on this many samples aren't known; all else waits.
        """
        _, samples, stage = self.queue[0].key
        if samples not in self.ledger.references:
            stage, race = "bare", None
            evaluated = {trials.EvaluationKey(BASE, samples, stage): self.base}
        else:
            first = self._alike(self.queue[0])
            alike = (pending for pending in self.queue if self._alike(pending) == first)
            chosen = list(islice(alike, self._part))
            self.queue = deque(pending for pending in self.queue if pending not in chosen)
            evaluated = {pending.key: pending.plan for pending in chosen}
            race = race_of(self.ledger, chosen[0].request) if self.races else None
        plans, keys = tuple(evaluated.values()), tuple(evaluated)
        task = Task(next(self._numbers), plans, samples, stage, keys, race)
        self.tasks[task.number] = task
        return task

    def _alike(self, pending: _PendingRequest) -> tuple[Any, ...]:
        """Return a key, equal for requests of one task: on equally many samples, in one race."""
        raced = self.races and pending.request.phase == trials.SEARCH
        return *pending.key[1:], pending.request.asked_after if raced else None

    def take(self, event: WorkerEvent) -> None:
        """Take in a worker's event about its task."""
        task = self.tasks[event.task]
        if isinstance(event, TaskOutcome):
            self._outcomes[task.keys[event.place]] = event.outcomes, event.seconds
            self._speeds.append(event.seconds / task.samples)
            return
        del self.tasks[event.task]
        if isinstance(event, Lost):
            self._lost(task)

    def _lost(self, task: Task) -> None:
        """Queue a lost worker's open plans again, or fail the plans that were lost often."""
        for key in reversed(task.keys):
            if self._known(key) or key.plan == BASE:  # the base is asked for anew
                continue
            self._losses[key] += 1
            if self._losses[key] >= _LOSSES:
                why = Failure("search", f"its worker was lost {_LOSSES} times")
                self._outcomes[key] = (why,) * len(self.ledger.aims), 0.0
            else:
                self.queue.appendleft(next(p for p in self.waiting if p.key == key))

    def told(self) -> Iterator[trials.Trial]:
        """Yield the trials known now; each has to be in the ledger before the next one."""
        for pending in list(self.waiting):
            trial = self._trial(pending)
            if trial is not None:
                self.waiting.remove(pending)
                yield trial
            elif self.workers > 1 and not pending.late:
                return

    def longest(self) -> float:
        """Return how many seconds a free worker waits for another one's task.

        It waits at least `patience`, and this many times the usual time of evaluations that the
        other worker must be stuck, or of another kind.
        """
        usual = median(self._speeds) if self._speeds else 0.0
        largest = max((task.samples * len(task.plans) for task in self.tasks.values()), default=0.0)
        return max(self.patience, _TIMES * usual * largest)

    def hurry(self) -> None:
        """Wait no longer for open requests: they are told when their outcomes come."""
        for pending in self.waiting:
            pending.late |= not self._known(pending.key)

    def measures(self) -> Iterator[tuple[int, tuple[Outcome, ...], float]]:
        """Yield the new outcomes of the uncut base: samples, outcomes, seconds."""
        for key in [key for key in self._outcomes if key.plan == BASE]:
            yield key.samples, *self._outcomes.pop(key)

    def _trial(self, of: _PendingRequest) -> trials.Trial | None:
        """Return the trial of a request; None if it isn't known yet."""
        number, key = len(self.ledger.trials), of.key
        if (earlier := self.ledger.found.get(key)) is not None:
            return replace(
                earlier,
                number=number,
                request=of.request,
                same_as=earlier.number,
                seconds=0.0,
                per_sample=(),
            )
        if key not in self._outcomes:
            return None
        outcomes, seconds = self._outcomes.pop(key)
        stopped = self._stopped(of, outcomes)
        share = self._share(key) if stopped is None else stopped / self.ledger.full
        as_noted = round(seconds, 3)  # so that a search that goes on has the same trials
        make = partial(trials.Trial, number, of.request, key.plan, share)
        scores = read_outcomes(outcomes)
        if isinstance(scores, Failure):
            return make(failure=scores, seconds=as_noted, stopped=stopped)
        return make(
            scores.values,
            scores.stderrs,
            seconds=as_noted,
            per_sample=scores.per_sample,
            stopped=stopped,
        )

    def _stopped(self, of: _PendingRequest, outcomes: tuple[Outcome, ...]) -> int | None:
        """Return after how many samples a trial was given up, if it was."""
        scores = (outcome for outcome in outcomes if isinstance(outcome, Score))
        used = [score.samples for score in scores if score.each is not None]
        if not self.races or of.request.phase != trials.SEARCH or len(used) < len(outcomes):
            return None
        return min(used) if min(used) < of.key.samples else None

    def _known(self, key: trials.EvaluationKey) -> bool:
        return key in self.ledger.found or key in self._outcomes

    def _share(self, key: trials.EvaluationKey) -> float:
        return key.samples / self.ledger.full


# ---------------------------------------------------------------------------------------- Ctrl-C


@contextmanager
def interruptible(on_event: Callable[[_Event], None]) -> Iterator[Callable[[_Event], None]]:
    """Wrap `on_event` so that a Ctrl-C that was swallowed still ends the search.

    Libraries may run Python of their own, as in callbacks of the garbage collector, where an
    exception is printed and forgotten. Then the next event still ends the search.
    """
    pressed = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def tell(event: _Event) -> None:
        on_event(event)
        if pressed.is_set():
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield tell
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
