"""Plans that are under way: which worker has which, and what arrived before its turn: `Dealt`."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from gptailor.plan.plan import Plan
from gptailor.search.run.trials import TrialOutcome, Wanted

LOSSES = 3
"""So many workers lost over one plan are that plan's failure."""


class EvaluationKey(NamedTuple):
    """What is evaluated once: a plan's digest, the samples, whether it is bridged."""

    plan: str
    samples: int
    bridged: bool


@final
@dataclass(frozen=True, eq=False)
class EvaluationSlot:
    """A wanted evaluation with its plan."""

    wanted: Wanted
    plan: Plan
    key: EvaluationKey


@final
@dataclass(frozen=True, eq=False)
class Arrived:
    """What became of a plan that was not told yet."""

    outcomes: tuple[TrialOutcome, ...]
    seconds: float


@final
@dataclass(eq=False)
class Assignment:
    """What a worker was given: slots that were not told yet, and what it runs for them.

    It is `open` while its task goes on; later there may be slots that wait for another worker.
    """

    slots: list[EvaluationSlot]
    running: list[EvaluationKey]
    open: bool


@final
@dataclass(eq=False)
class Dealt:
    """All that is under way, by the numbers of tasks; `bases` are tasks that judge the base."""

    batches: dict[int, Assignment] = field(default_factory=dict)
    bases: dict[int, int] = field(default_factory=dict)
    arrived: dict[EvaluationKey, Arrived] = field(default_factory=dict)
    queue: deque[EvaluationSlot] = field(default_factory=deque)
    stage: int = 1
    _losses: Counter[EvaluationKey] = field(default_factory=Counter)
    _tasks: int = 0

    def number(self) -> int:
        """The number of a new task."""
        self._tasks += 1
        return self._tasks

    @property
    def open(self) -> int:
        """How many workers are at work."""
        return len(self.bases) + sum(batch.open for batch in self.batches.values())

    @property
    def waiting(self) -> int:
        """How many batches wait for what other workers do."""
        return sum(not batch.open for batch in self.batches.values())

    @property
    def running(self) -> Iterator[EvaluationKey]:
        """What workers were given and has not arrived, or was not told."""
        return (key for batch in self.batches.values() for key in batch.running)

    def fill(self, slots: Sequence[EvaluationSlot]) -> None:
        """A new stage, which the workers share."""
        self.stage = len(slots)
        self.queue.extend(slots)

    def share(self, workers: int) -> list[EvaluationSlot]:
        """One worker's part of the stage, out of the queue: slots on equally many samples."""
        most = max(1, -(-self.stage // workers))
        first = self.queue[0].key
        alike = (slot for slot in self.queue if slot.key[1:] == first[1:])
        chosen = [slot for slot, _ in zip(alike, range(most), strict=False)]
        self.queue = deque(slot for slot in self.queue if slot not in chosen)
        return chosen

    def lost(self, batch: Assignment, objectives: int) -> None:
        """What a worker hadn't found is dealt again, or has failed if that happens often."""
        batch.open = False
        for key in [key for key in batch.running if key not in self.arrived]:
            self._losses[key] += 1
            if self._losses[key] >= LOSSES:
                why = f"its worker was lost {LOSSES} times"
                self.arrived[key] = Arrived((why,) * objectives, 0.0)
        batch.running = [key for key in batch.running if key in self.arrived]
        self.queue.extendleft(reversed(batch.slots))
        batch.slots.clear()

    def forget(self) -> None:
        """Batches that are over."""
        self.batches = {n: one for n, one in self.batches.items() if one.open or one.slots}
