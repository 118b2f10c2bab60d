"""Who evaluates plans: one device after another, or several at the same time: `Workers`."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, final, runtime_checkable

from gptailor.plan.plan import Plan
from gptailor.search.run.trials import TrialOutcome


@runtime_checkable
class Judge(Protocol):
    """Evaluates plans on a share of the search's samples, bridged or with their bridges left out.

    Gives the number of a plan among `plans`, and an outcome for each objective, in any order. What
    goes wrong with one plan is its outcome; what it raises concerns all.
    """

    def __call__(
        self, plans: Sequence[Plan], share: float, *, bridged: bool
    ) -> Iterator[tuple[int, tuple[TrialOutcome, ...]]]:
        """What becomes of each plan."""


class Task(NamedTuple):
    """Plans for one worker, on equally many samples."""

    number: int
    plans: tuple[Plan, ...]
    share: float
    bridged: bool


class Found(NamedTuple):
    """What became of a task's plan at that place, and how long that took."""

    task: int
    place: int
    outcomes: tuple[TrialOutcome, ...]
    seconds: float


class Done(NamedTuple):
    """A task is over, and its worker is free."""

    task: int


class Lost(NamedTuple):
    """A worker was lost, and with it what of its task was not found yet."""

    task: int


Event = Found | Done | Lost


@runtime_checkable
class Workers(Protocol):
    """Evaluate `count` tasks at the same time."""

    @property
    def count(self) -> int:
        """How many tasks may be given at once."""

    def submit(self, task: Task) -> None:
        """Begin a task; at most `count` are open at a time."""

    def next(self) -> Event:
        """Wait for what comes first."""


@final
class Alone:
    """One judge, which works while it is waited for."""

    count = 1

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._task = -1
        self._outcomes: Iterator[tuple[int, tuple[TrialOutcome, ...]]] = iter(())

    def submit(self, task: Task) -> None:
        """Begin a task; nothing is evaluated yet."""
        self._task = task.number
        self._outcomes = self.judge(task.plans, task.share, bridged=task.bridged)

    def next(self) -> Event:
        """The next plan's outcome."""
        begun = time.perf_counter()
        found = next(self._outcomes, None)
        if found is None:
            return Done(self._task)
        return Found(self._task, *found, time.perf_counter() - begun)
