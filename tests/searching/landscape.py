"""A search without models: a space, an evaluator that counts letters, a strategy that drifts."""

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gptailor
from gptailor.evaluation.scores import Failure, Outcome, Race, Score
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run.asking import Asking
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.journal import JOURNAL, JournalFile
from gptailor.searching.run.origin import BestWindow, WindowCut
from gptailor.searching.run.records import Aim
from gptailor.searching.run.schedule import Stages, Start
from gptailor.searching.run.study import Study, open_study
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run.workers import (
    PATIENCE,
    Alone,
    Done,
    Lost,
    Task,
    TaskOutcome,
    UnderWay,
    WorkerEvent,
    Workers,
)
from gptailor.searching.search import SearchEvent, search_steps
from gptailor.searching.space.genome import Genome, genome_to_json
from gptailor.searching.space.hash_random import folded, key_of
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import Table, sample

TEXT = """\
tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
drop any 2 of L0..L7
L0..L7 from any of math, code by task_arithmetic(0.0..1.0)
"""
BASE = 'tailor 1\nmodel base = "./base"\n'
NLL = Aim("nll", "minimize", "base")
ACCURACY = Aim("accuracy", "maximize", "base")
KL = Aim("kl", "minimize", "spread")


def space() -> Space:
    return space_of(gptailor.loads(TEXT), 8)


def names_of(space: Space) -> list[str]:
    """The names of a space's genes; no two are alike."""
    names = [gene.name for genes in (space.bits, space.picks, space.reals) for gene in genes]
    assert len(set(names)) == len(names)
    return names


def number(plan: Plan, salt: str = "") -> float:
    """A number in 0..1 that is the plan's own."""
    raw = hashlib.sha256((salt + gptailor.format(plan)).encode()).digest()
    return int.from_bytes(raw[:6]) / 2**48


@dataclass
class Counting:
    """An evaluator that scores a plan by its text; it remembers its requests."""

    aims: tuple[Aim, ...] = (NLL,)
    fails: Callable[[Plan], bool] = lambda plan: False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, float, Stage]] = []

    def __call__(
        self, plans: Sequence[Plan], samples: int, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        share = samples / 64
        for index in reversed(range(len(plans))):  # not in the order of asking
            plan = plans[index]
            self.asked.append((gptailor.format(plan), share, stage))
            time.sleep(self.seconds)
            if plan.drops and self.fails(plan):
                yield index, (Failure("search", "too bad"),) * len(self.aims)
            else:
                yield index, tuple(self.score(plan, aim, share, stage) for aim in self.aims)

    def score(self, plan: Plan, aim: Aim, share: float, stage: Stage) -> Outcome:
        loss = sum(1 + (drop.position - 3) ** 2 / 9 for drop in plan.drops)
        loss += 0.1 * number(plan, aim.name) + 0.01 * number(plan, f"{aim.name} {share}")
        loss *= {"bare": 1.0, "bridged": 0.5, "healed": 0.25}[stage]
        if not plan.drops:
            loss = 0.0
        if aim.direction == "maximize":
            return Score(1 / (1 + loss), 0.01, round(64 * share))
        return Score(2 + loss, 0.02, round(64 * share))


@dataclass(frozen=True)
class Drifting:
    """A strategy with asks that depend on all tells, in order, and on the earlier asks."""

    name: str = "drifting"
    population: int = 3
    shares: tuple[float, ...] = (0.25, 1.0, 1.0)

    def init(
        self, table: Table, capacity: int, key: Any, objectives: int = 1, prior: Any = None
    ) -> Any:
        return 0, 0.0

    def ask(self, table: Table, state: Any, key: Any, weights: Any) -> Any:
        asks, drift = state
        drawn = sample(table, folded(key, asks + int(1000 * drift)), self.population)
        return drawn, np.array(self.shares), (asks + 1, drift)

    def tell(self, table: Table, state: Any, population: Genome, values: Any, share: Any) -> Any:
        asks, drift = state
        for row, part in zip(np.nan_to_num(values), share, strict=True):
            drift = 0.7 * drift + float(row.sum() * part)
        return asks, drift


@dataclass(frozen=True)
class Stubborn:
    """Asks for one genome for ever."""

    name: str = "stubborn"
    population: int = 2

    def init(
        self, table: Table, capacity: int, key: Any, objectives: int = 1, prior: Any = None
    ) -> Any:
        return ()

    def ask(self, table: Table, state: Any, key: Any, weights: Any) -> Any:
        one = sample(table, key_of(7), 1)
        return Genome(*(np.repeat(genes, 2, axis=0) for genes in one)), np.ones(2), state

    def tell(self, table: Table, state: Any, population: Genome, values: Any, share: Any) -> Any:
        return state


class Staged:
    """Two stages of starting plans, the second one made of the best of the first."""

    def __init__(self, space: Space) -> None:
        drawn = sample(space.table, key_of(0), 4)
        self.genomes = [Genome(*genes) for genes in zip(*drawn, strict=True)]

    def stages(self) -> Stages:
        plans = enumerate(self.genomes)
        told = yield [Start(WindowCut(dropped=(n,)), one, 0.25) for n, one in plans]
        best = min(told, key=lambda one: sum(one.losses))
        yield [Start(BestWindow(), best.genome, 1.0)]

    def focus(self, told: Sequence[Start]) -> Table | None:
        return None


@dataclass(frozen=True)
class SearchSetting:
    """Settings that the course of a search depends on."""

    space: Space
    base: Plan
    aims: tuple[Aim, ...]
    strategy: Any
    starts: Any
    budget: Budget
    seed: int = 0
    patience: float = PATIENCE
    races: bool = False
    within: Any = None


def setting(**changes: Any) -> SearchSetting:
    result = space()
    fields: dict[str, Any] = {
        "space": result,
        "base": gptailor.loads(BASE),
        "aims": (NLL,),
        "strategy": Drifting(),
        "starts": Staged(result),
        "budget": Budget(12, 16, 64),
        "seed": 5,
    }
    return SearchSetting(**(fields | changes))


def study_of(folder: Path) -> Study:
    """Return the study in a folder, which need not have a `run.json`."""
    journal = folder / JOURNAL
    return open_study(JournalFile(journal), begun=journal.exists() and journal.stat().st_size > 0)


@dataclass
class Search:
    """A search that goes on where its study ends; `on_event` sees what happens."""

    setting: SearchSetting
    study: Study
    workers: Workers
    on_event: Callable[[SearchEvent], None] | None = None
    prefer: int | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.setting.aims, self.setting.budget.full, self.prefer)
        self.study.recall(self.ledger, self.setting.space)

    def steps(self) -> Iterator[SearchEvent]:
        of, ledger = self.setting, self.ledger
        asking = Asking(
            of.strategy, of.space, ledger,
            seed=of.seed, capacity=of.budget.capacity, within=of.within,
        )  # fmt: skip
        under_way = UnderWay(ledger, of.base, self.workers.count, of.patience, races=of.races)
        return search_steps(of.budget, of.starts, asking, under_way, self.study, self.workers)

    def run(self) -> str:
        for event in self.steps():
            if self.on_event is not None:
                self.on_event(event)
        assert self.study.typed.ended is not None
        return self.study.typed.ended.reason


def search(
    folder: Path,
    chosen: SearchSetting,
    evaluate: Any = None,
    workers: Workers | None = None,
    **options: Any,
) -> Search:
    evaluate = evaluate or Counting(chosen.aims)
    return Search(chosen, study_of(folder), workers or Alone(evaluate), **options)


def record(trials: list[Trial]) -> list[dict[str, Any]]:
    """All that is kept of trials, but for how long they took."""
    return [
        {
            **{name: value for name, value in vars(trial).items() if name != "seconds"},
            "request": {**vars(trial.request), "genome": genome_to_json(trial.request.genome)},
        }
        for trial in trials
    ]


@dataclass
class Simulated:
    """Workers on a clock of their own: a plan takes as long as its worker is slow."""

    evaluate: Any
    slow: tuple[float, ...]
    dies: Callable[[int, Task], bool] = lambda worker, task: False
    clock: float = 0.0
    events: list[Any] = field(default_factory=list)
    busy: dict[int, int] = field(default_factory=dict)
    done: Counter[int] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return len(self.slow)

    def submit(self, task: Task) -> None:
        worker = min(set(range(self.count)) - set(self.busy))
        self.busy[worker] = task.number
        at = self.clock
        how = {"stage": task.stage, "race": task.race}
        for index, outcomes in self.evaluate(task.plans, task.samples, **how):
            at += self.slow[worker] * task.samples / 64
            self._push(at, worker, TaskOutcome(task.number, index, outcomes, self.slow[worker]))
            if self.dies(worker, task):
                self._push(at, worker, Lost(task.number))
                return
        self._push(at, worker, Done(task.number))

    def _push(self, at: float, worker: int, event: WorkerEvent) -> None:
        heapq.heappush(self.events, (at, worker, len(self.events) + 1000 * event.task, event))

    def next(self, longest: float | None = None) -> WorkerEvent | None:
        if longest is not None and self.events[0][0] > self.clock + longest:
            self.clock += longest
            return None
        self.clock, worker, _, event = heapq.heappop(self.events)
        if isinstance(event, TaskOutcome):
            self.done[worker] += 1
        else:
            del self.busy[worker]
        return event
