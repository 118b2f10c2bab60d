"""Who evaluates plans, one device after another or several at the same time, and what they do."""

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import NamedTuple, Protocol, TypeAlias, final, runtime_checkable

from gptailor.evaluate.outcome import Failure, Outcome
from gptailor.lang.format import format_plan
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.search.run import trials
from gptailor.search.run.per_sample import per_objective

_LOSSES = 3
"""So many workers lost over one plan are that plan's failure."""
BASE = "base"
"""Instead of a digest: the plan of the uncut base."""

Judge: TypeAlias = Callable[..., Iterator[tuple[int, tuple[Outcome, ...]]]]
"""`judge(plans, share, stage=...)` evaluates plans on a share of the search's samples.

A `stage` says whether plans are bridged and healed. Gives the number of a plan among `plans` with
its outcomes, one for each objective, in any order. What goes wrong with one plan is its outcome;
what a judge raises concerns all.
"""


@final
@dataclass(eq=False)
class _Decoded:
    """A request with the plan of its genome."""

    request: trials.TrialRequest
    plan: Plan
    key: trials.EvaluationKey


@final
@dataclass(eq=False)
class Task:
    """Plans for one worker, on equally many samples, each with the `key` of its evaluation.

    `waiting` are the requests that were not told yet: for these plans, or for some that another
    task has. It is `open` while a worker is at it.
    """

    number: int
    plans: tuple[Plan, ...]
    share: float
    stage: Stage
    keys: tuple[trials.EvaluationKey, ...] = ()
    waiting: list[_Decoded] = field(default_factory=list)
    open: bool = True


@final
class Found(NamedTuple):
    """What became of a task's plan at that place, and how long that took."""

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
    """A worker was lost, and with it what of its task was not found yet."""

    task: int


WorkerEvent = Found | Done | Lost


@runtime_checkable
class Workers(Protocol):
    """Evaluate `count` tasks at the same time."""

    @property
    def count(self) -> int:
        """How many tasks may be given at once."""

    def submit(self, task: Task) -> None:
        """Begin a task; at most `count` are open at a time."""

    def next(self) -> WorkerEvent:
        """Wait for what comes first."""


@final
class Alone:
    """One judge, which works while it is waited for."""

    count = 1

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._task = -1
        self._outcomes: Iterator[tuple[int, tuple[Outcome, ...]]] = iter(())

    def submit(self, task: Task) -> None:
        """Begin a task; nothing is evaluated yet."""
        self._task = task.number
        self._outcomes = self.judge(task.plans, task.share, stage=task.stage)

    def next(self) -> WorkerEvent:
        """The next plan's outcome."""
        begun = time.perf_counter()
        found = next(self._outcomes, None)
        if found is None:
            return Done(self._task)
        return Found(self._task, *found, time.perf_counter() - begun)


@final
class UnderWay:
    """Requests that wait for a worker, tasks that are open, and outcomes that were not told."""

    def __init__(self, ledger: trials.Ledger, workers: int) -> None:
        self.ledger = ledger
        self.workers = workers
        self.queue: deque[_Decoded] = deque()
        self.tasks: dict[int, Task] = {}
        self._outcomes: dict[trials.EvaluationKey, tuple[tuple[Outcome, ...], float]] = {}
        self._losses: Counter[trials.EvaluationKey] = Counter()
        self._numbers = count(1)
        self._stage = 1

    @property
    def open(self) -> int:
        """How many workers are at work."""
        return sum(task.open for task in self.tasks.values())

    @property
    def wants_more(self) -> bool:
        """Whether a worker is free, and not all that is asked for waits for others."""
        busy, tasks = self.open, self.tasks.values()
        of_base = any(task.keys and task.keys[0].plan == BASE for task in tasks)
        return not of_base and max(busy, len(tasks) - busy) < self.workers

    def fill(self, asked: Iterable[tuple[trials.TrialRequest, Plan]]) -> None:
        """A new stage of requests with their plans, which the workers share."""
        for one, plan in asked:
            digest = hashlib.sha256(format_plan(plan).encode()).hexdigest()
            key = trials.EvaluationKey(digest, one.samples, one.stage)
            self.queue.append(_Decoded(one, plan, key))
        self._stage = len(self.queue)

    def base_task(self, base: Plan) -> Task:
        """The uncut base on as many samples as what is next; all else waits for it."""
        samples = self.queue[0].key.samples
        return self._begun([], {trials.EvaluationKey(BASE, samples, "bare"): base})

    def trials_task(self, left: float) -> tuple[Task, bool]:
        """One worker's part of the stage, and whether what is `left` of the budget was enough.

        Without `plans` nothing has to be evaluated: all is known or under way.
        """
        known = {key for task in self.tasks.values() for key in task.keys}
        left -= math.fsum(self._share(key) for key in known if key not in self.ledger.found)
        waiting: list[_Decoded] = []
        plans: dict[trials.EvaluationKey, Plan] = {}
        enough = True
        for one in self._part():
            if not (one.key in known or one.key in plans or self._known(one.key)):
                left -= self._share(one.key)
                if one.request.phase == trials.SEARCH and left < 0:
                    enough = False
                    self.queue.clear()
                    break
                plans[one.key] = one.plan
            waiting.append(one)
        return self._begun(waiting, plans), enough

    def _part(self) -> list[_Decoded]:
        """What of the queue is one worker's: on equally many samples."""
        _, samples, stage = self.queue[0].key
        alike = (one for one in self.queue if one.key[1:] == (samples, stage))
        chosen = list(islice(alike, max(1, -(-self._stage // self.workers))))
        self.queue = deque(one for one in self.queue if one not in chosen)
        return chosen

    def _begun(self, waiting: list[_Decoded], plans: dict[trials.EvaluationKey, Plan]) -> Task:
        number, keys = next(self._numbers), tuple(plans)
        share = self._share(keys[0]) if keys else 1.0
        stage: Stage = keys[0].stage if keys else "bare"
        found = Task(number, tuple(plans.values()), share, stage, keys, waiting, bool(plans))
        self.tasks[number] = found
        return found

    def take(self, event: WorkerEvent) -> None:
        """Take in what a worker says of its task."""
        task = self.tasks[event.task]
        if isinstance(event, Found):
            self._outcomes[task.keys[event.place]] = event.outcomes, event.seconds
            return
        task.open = False
        if isinstance(event, Lost):
            self._lost(task)
        self._forget()

    def _lost(self, task: Task) -> None:
        """What a worker hadn't found is dealt again, or has failed if that happens often."""
        for key in (key for key in task.keys if not (self._known(key) or key.plan == BASE)):
            self._losses[key] += 1
            if self._losses[key] >= _LOSSES:
                why = Failure("search", f"its worker was lost {_LOSSES} times")
                self._outcomes[key] = (why,) * len(self.ledger.aims), 0.0
        task.keys = tuple(key for key in task.keys if self._known(key))
        self.queue.extendleft(reversed(task.waiting))
        task.waiting.clear()

    def told(self) -> Iterator[trials.Trial]:
        """The trials that are known now; each has to be in the ledger before the next one.

        A plan's second request is told once its first is, in any task.
        """
        for task in list(self.tasks.values()):
            for one in list(task.waiting):
                if (trial := self._trial(one)) is not None:
                    task.waiting.remove(one)
                    yield trial
        self._forget()

    def measures(self) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        """What came of the uncut base since the last time, by the number of samples."""
        for key in [key for key in self._outcomes if key.plan == BASE]:
            yield key.samples, self._outcomes.pop(key)[0]

    def _trial(self, of: _Decoded) -> trials.Trial | None:
        """What became of a request; None if it isn't known yet."""
        number, key = len(self.ledger.trials), of.key
        made = partial(trials.Trial, number, of.request, key.plan, self._share(key))
        if (known := self.ledger.found.get(key)) is not None:
            return made(known.values, known.stderrs, known.failure, same_as=known.number)
        if key not in self._outcomes:
            return None
        outcomes, seconds = self._outcomes.pop(key)
        read = trials.read_outcomes(outcomes)
        samples = () if read[0] is None else per_objective(outcomes)
        return made(*read, seconds, per_sample=samples)

    def _forget(self) -> None:
        self.tasks = {n: task for n, task in self.tasks.items() if task.open or task.waiting}

    def _known(self, key: trials.EvaluationKey) -> bool:
        return key in self.ledger.found or key in self._outcomes

    def _share(self, key: trials.EvaluationKey) -> float:
        return key.samples / self.ledger.full
