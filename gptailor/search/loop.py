"""The loop of a search: deals plans to workers, and writes down what becomes of them."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, Protocol, cast, final, runtime_checkable

from gptailor.lang.format import format_plan
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.search.run.schedule import Asking, Budget, Schedule, StartSource
from gptailor.search.run.study import Study
from gptailor.search.run.tasks import Arrived, Assignment, Dealt, EvaluationKey, EvaluationSlot
from gptailor.search.run.trials import SEARCH, Aim, Ledger, Trial, Wanted, read_outcomes
from gptailor.search.run.workers import Done, Event, Found, Lost, Task, Workers
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space

if TYPE_CHECKING:
    from gptailor.search.strategies.strategy import Strategy

STARTING = 64
"""Room for starting plans beside the budget, as many of them use few samples."""
_GIVE_UP_AFTER = 8
"""So many trials without a single score end a search."""

ENDED = "ended"
"""The study's note that a budget was spent, and how."""

Reason = Literal["budget", "exhausted"]
"""Why a search ended: its budget is spent, or the strategy finds nothing new any more."""


class SearchError(TailorError):
    """A search can't go on, for a reason that concerns all its trials."""


@runtime_checkable
class Watch(Protocol):
    """Sees what happens."""

    def asking(self) -> None:
        """What to evaluate next is being worked out."""

    def told(self, trial: Trial) -> None:
        """A trial was written down."""

    def began(self, plans: int, samples: int) -> None:
        """A worker has so many plans to evaluate."""


@final
class Unwatched:
    """Nobody looks."""

    def asking(self) -> None:
        """Nothing."""

    def told(self, trial: Trial) -> None:
        """Nothing."""

    def began(self, plans: int, samples: int) -> None:
        """Nothing."""


@final
@dataclass(frozen=True)
class SearchSetting:
    """What a search is of and how it goes: all that its course depends on but for the judge.

    `base` is the plan of the uncut base, by which scores are measured.
    """

    space: Space
    base: Plan
    aims: tuple[Aim, ...]
    strategy: "Strategy"
    starts: StartSource
    budget: Budget
    seed: int = 0
    prefer: int | None = None


@final
class SearchLoop:
    """One search. Made of a study with trials it goes on where that ends.

    With one worker its course depends on the setting and the outcomes alone.
    """

    def __init__(
        self, setting: SearchSetting, study: Study, workers: Workers, watch: Watch | None = None
    ) -> None:
        self.setting = setting
        self.study = study
        self.workers = workers
        self.watch: Watch = Unwatched() if watch is None else watch
        self.ledger = Ledger(setting.aims, setting.budget.full, setting.prefer)
        self._recall()
        self.dealt = Dealt()
        self._fresh = 0
        self._scored = any(trial.values is not None for trial in self.ledger.trials)

    @cached_property
    def schedule(self) -> Schedule:
        """What comes next. Making it asks the strategy again all that it was asked before."""
        of = self.setting
        asking = Asking(of.strategy, of.space, self.ledger, seed=of.seed, capacity=self.capacity)
        return Schedule(self.ledger, of.budget, of.starts, asking)

    def _recall(self) -> None:
        """Take in what the study holds."""
        for name, said in self.study.notes.items():
            kind, _, samples = name.partition(" ")
            if kind == "base" and samples.isdecimal():
                self.ledger.references[int(samples)] = tuple(map(float, said["values"]))
        for trial in self.study.trials():
            self.ledger.add(trial)

    @property
    def capacity(self) -> int:
        """Room for told trials. Those on fewer samples cost less, so there may be more of them."""
        budget = self.setting.budget
        return STARTING + budget.trials * (1 if budget.low == budget.full else 2)

    def run(self) -> Reason:
        """Evaluate until the budget is spent. What was told is kept whatever happens.

        Raises SearchError where nothing has a score, and what the judge or the disk raises.
        """
        budget = self.setting.budget
        about = {"trials": budget.trials, "beside": budget.beside}
        ended = self.study.notes.get(ENDED, {})
        if about == {name: ended.get(name) for name in about}:
            return cast(Reason, ended["reason"])
        while True:
            self._deal()
            if not self.dealt.open:
                break
            self._take(self.workers.next())
        reason: Reason = "exhausted" if self.schedule.exhausted else "budget"
        self.study.note(ENDED, {**about, "reason": reason})
        return reason

    # ------------------------------------------------------------------------------------- dealing

    def _deal(self) -> None:
        """Give every free worker something to do, unless what is asked for is all under way."""
        dealt, count = self.dealt, self.workers.count
        while not dealt.bases and dealt.open < count and dealt.waiting < count:
            if not dealt.queue:
                self.watch.asking()
                wanted = self.schedule.next(idle=not dealt.batches)
                dealt.fill([self._slot(one) for one in wanted])
            if not dealt.queue:
                return
            samples = dealt.queue[0].key.samples
            if samples not in self.ledger.references:
                self._judge_base(samples)
            else:
                self._give(dealt.share(count))

    def _slot(self, wanted: Wanted) -> EvaluationSlot:
        plan = decode(self.setting.space, wanted.genome)
        return EvaluationSlot(
            wanted, plan, EvaluationKey(plan_text_digest(plan), wanted.samples, wanted.bridged)
        )

    def _give(self, slots: Sequence[EvaluationSlot]) -> None:
        """Begin what of these isn't known or under way, as far as there is budget for it."""
        room = self.schedule.left - self._under_way
        kept: list[EvaluationSlot] = []
        running: dict[EvaluationKey, Plan] = {}
        for slot in slots:
            if not (self._known(slot.key) or slot.key in running):
                cost = self._share(slot.key.samples)
                if slot.wanted.phase == SEARCH and cost > room:
                    self.schedule.close()
                    self.dealt.queue.clear()
                    break
                room -= cost
                running[slot.key] = slot.plan
            kept.append(slot)
        if kept:
            self._begin(kept, running)

    def _begin(self, slots: list[EvaluationSlot], running: dict[EvaluationKey, Plan]) -> None:
        number = self.dealt.number()
        self.dealt.batches[number] = Assignment(slots, list(running), open=bool(running))
        if running:
            _, samples, bridged = next(iter(running))
            self.watch.began(len(running), samples)
            share = self._share(samples)
            self.workers.submit(Task(number, tuple(running.values()), share, bridged))
        self._flush()

    def _known(self, key: EvaluationKey) -> bool:
        dealt = self.dealt
        return key in self.ledger.found or key in dealt.arrived or key in dealt.running

    @property
    def _under_way(self) -> float:
        """The cost of what was not told yet."""
        return math.fsum(
            self._share(k.samples) for k in self.dealt.running if k not in self.ledger.found
        )

    def _share(self, samples: int) -> float:
        return samples / self.setting.budget.full

    # ------------------------------------------------------------------------------------- telling

    def _take(self, event: Event) -> None:
        if event.task in self.dealt.bases:
            self._take_base(event)
            return
        batch = self.dealt.batches[event.task]
        if isinstance(event, Found):
            found = Arrived(event.outcomes, event.seconds)
            self.dealt.arrived[batch.running[event.place]] = found
        elif isinstance(event, Lost):
            self.dealt.lost(batch, len(self.setting.aims))
        else:
            batch.open = False
        self._flush()

    def _flush(self) -> None:
        """Tell what can be told. A plan's second slot is told once its first is, in any batch."""
        for batch in self.dealt.batches.values():
            for slot in list(batch.slots):
                if (trial := self._trial(slot)) is not None:
                    batch.slots.remove(slot)
                    self._tell(trial)
        self.dealt.forget()

    def _trial(self, slot: EvaluationSlot) -> Trial | None:
        """What became of a slot; None if it isn't known yet."""
        key = slot.key
        made = partial(Trial, len(self.ledger.trials), slot.wanted, key.plan, self._share(key[1]))
        if (known := self.ledger.found.get(key)) is not None:
            return made(known.values, known.stderrs, known.failure, same_as=known.number)
        if (arrived := self.dealt.arrived.pop(key, None)) is not None:
            return made(*read_outcomes(arrived.outcomes), arrived.seconds)
        return None

    def _tell(self, trial: Trial) -> None:
        """Write down first, then know."""
        self.study.add(trial)
        self.ledger.add(trial)
        self._fresh += 1
        self._scored |= trial.values is not None
        self.watch.told(trial)
        if not self._scored and self._fresh >= min(_GIVE_UP_AFTER, self.setting.budget.trials):
            raise SearchError(self._hopeless())

    def _hopeless(self) -> str:
        reasons = Counter(t.failure for t in self.ledger.trials if t.failure is not None)
        [(reason, count)] = reasons.most_common(1)
        many = len(self.ledger.trials)
        whose = f"none of the first {many} trials has" if many > 1 else "the first trial hasn't"
        return f"{whose} a score, so the search stops; {count} of them: {reason}"

    # ---------------------------------------------------------------------------------- the measure

    def _judge_base(self, samples: int) -> None:
        """The uncut base on as many samples; all else waits for it."""
        number = self.dealt.number()
        self.dealt.bases[number] = samples
        share = samples / self.setting.budget.full
        self.watch.began(1, samples)
        self.workers.submit(Task(number, (self.setting.base,), share, bridged=False))

    def _take_base(self, event: Event) -> None:
        if isinstance(event, Done | Lost):
            del self.dealt.bases[event.task]
            return
        samples = self.dealt.bases[event.task]
        values, stderrs, failure = read_outcomes(event.outcomes)
        if values is None or stderrs is None:
            raise SearchError(f"the base itself has no score: {failure}")
        for aim, value in zip(self.setting.aims, values, strict=True):
            if aim.scale == "base" and value <= 0:
                message = (
                    f"the base's score by {aim.name} is {value:g}: nothing can be a share of it"
                )
                raise SearchError(message)
        errors = [error if math.isfinite(error) else None for error in stderrs]
        self.study.note(f"base {samples}", {"values": list(values), "stderrs": errors})
        self.ledger.references[samples] = values


def plan_text_digest(plan: Plan) -> str:
    """The sha256 of a plan's canonical text."""
    return hashlib.sha256(format_plan(plan).encode()).hexdigest()
