"""A search that gives up trials that have lost: its savings, findings, and kept results."""

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.evaluation.scores import Outcome, PerSample, Race, race_counts
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run.asking import Asking
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.incumbent import race_of
from gptailor.searching.run.origin import StrategyPlan
from gptailor.searching.run.study import Study
from gptailor.searching.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.searching.run.workers import Task
from gptailor.searching.search import Scored, SearchEvent
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.table import Table, sample
from tests.searching.landscape import (
    NLL,
    Drifting,
    Search,
    Simulated,
    number,
    record,
    search,
    setting,
    space,
)

FULL = 64


@dataclass
class Sampling:
    """An evaluator with a score for each sample: a common part, a plan's own part, and noise."""

    noise: float = 0.3
    used: list[int] = field(default_factory=list)

    def __call__(
        self, plans: Sequence[Plan], full: int, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        for index, plan in enumerate(plans):
            sums = [self.score(plan, sample) for sample in range(full)]
            looks = [n for n in race_counts(full) if n] if race is not None else []
            for count in (*looks, full):
                result = PerSample(tuple(sums[:count]), (1,) * count).score()
                assert result.each is not None
                if count == full or (race is not None and race.lost((result.each,))):
                    self.used.append(count)
                    yield index, (result,)
                    break

    def score(self, plan: Plan, sample: int) -> float:
        text = gptailor.format(plan)
        own = random.Random(f"{text} {sample}").gauss(0, self.noise)
        common = random.Random(sample).gauss(3, 1)
        loss = sum(0.2 * (drop.position - 3) ** 2 / 9 for drop in plan.drops)
        return common + (loss + 0.2 * number(plan) + own if plan.drops else 0.0)


def ran(folder: Path, evaluate: Sampling, *, races: bool = True, seed: int = 5) -> Search:
    folder.mkdir(exist_ok=True)
    chosen = setting(aims=(NLL,), budget=Budget(16, 16, FULL), races=races, seed=seed)
    result = search(folder, chosen, evaluate)
    result.run()
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Sampling]:
    """A search with races that nothing disturbed, and its evaluator."""
    evaluate = Sampling()
    return ran(tmp_path_factory.mktemp("whole"), evaluate), evaluate


@pytest.fixture
def found(whole: tuple[Search, Sampling]) -> Search:
    """That search."""
    return whole[0]


def test_stopped_trials_cost_the_samples_that_they_used(whole: tuple[Search, Sampling]) -> None:
    result, evaluate = whole
    stopped = [trial for trial in result.ledger.trials if trial.stopped is not None]
    assert stopped
    for trial in stopped:
        assert trial.request.phase == SEARCH
        assert trial.samples in race_counts(trial.request.samples)
        assert trial.cost in {trial.samples / FULL, 0}
        assert not trial.full
    assert all(trial.stopped is None for trial in result.ledger.of(STARTS, RANDOM))
    bases = [FULL, 16]
    assert sum(evaluate.used) == sum(bases) + round(FULL * result.ledger.cost())
    assert result.ledger.cost() <= 16


def test_racing_tries_more_plans_with_the_same_budget(found: Search, tmp_path: Path) -> None:
    without = ran(tmp_path / "all", Sampling(), races=False)
    assert all(trial.stopped is None for trial in without.ledger.trials)
    assert len(found.ledger.trials) > len(without.ledger.trials)


def test_the_best_plan_was_scored_on_all_samples(tmp_path: Path) -> None:
    for seed in range(3):
        result = ran(tmp_path / str(seed), Sampling(), seed=seed)
        best = result.ledger.best()
        assert best is not None
        assert best.full
        assert best.stopped is None


def test_a_stopped_trial_is_reported_as_behind_its_rival() -> None:
    """The first eighth is easy for every cut: on that alone the loser would seem the better one."""
    events: list[Any] = []

    class Hearing(Drifting):
        def tell(
            self, table: Table, state: Any, population: Genome, values: Any, share: Any
        ) -> Any:
            events.extend(values[:, 0])
            return state

    ledger = Ledger((NLL,), FULL)
    ledger.references = {8: (2.0,), 32: (2.0,), FULL: (2.0,)}
    genomes = Genome(*sample(space().table, key_of(0), 2))
    easy, all_ = (1.0,) * 8, (1.0,) * 8 + (5.0,) * 56
    for number_, sums in enumerate((all_, tuple(item + 0.5 for item in easy))):
        each = PerSample(sums, (1,) * len(sums))
        genome = Genome(*(genes[number_] for genes in genomes))
        request = TrialRequest(
            SEARCH, number_, 0, StrategyPlan(strategy="drifting"), genome, FULL, "bare", number_
        )
        ledger.add(
            Trial(
                number_, request, str(number_), len(sums) / FULL, (each.score().value,), (0.1,),
                per_sample=(each,), stopped=8 if number_ else None,
            )
        )  # fmt: skip
    first, lost = ledger.trials
    ledger.add(replace(lost, number=2, same_as=1, per_sample=()))
    strategy: Any = Hearing(population=1, shares=(1.0,))
    asking = Asking(strategy, space(), ledger, seed=0, capacity=8)
    asking.ask(2, 3)
    [[best], [alone]] = ledger.losses([first, lost])
    assert alone < best
    assert events == pytest.approx([best, best + 0.25, best + 0.25])


def test_a_kill_while_the_base_is_noted_leaves_the_same_races(
    found: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    write, noted = Study.note, list[int]()

    def killed(study: Study, name: str, value: Any) -> None:
        write(study, name, value)
        if name == "bases":
            noted.append(len(value))
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Study, "note", killed)
        for _ in range(5):
            with suppress(Killed):
                ran(tmp_path / "killed", Sampling())
    again = ran(tmp_path / "killed", Sampling())
    assert noted == sorted({*noted}) != []
    assert record(again.ledger.trials) == record(found.ledger.trials)


def test_a_search_that_was_killed_ends_with_the_same_study(found: Search, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    (tmp_path / "killed").mkdir()
    for at in (9, 14, 21):

        def kill(event: SearchEvent, at: int = at) -> None:
            if isinstance(event, Scored) and event.trial.number == at:
                raise Killed

        chosen = setting(aims=(NLL,), budget=Budget(16, 16, FULL), races=True)
        with pytest.raises(Killed):
            search(tmp_path / "killed", chosen, Sampling(), on_event=kill).run()
    again = ran(tmp_path / "killed", Sampling())
    assert record(again.ledger.trials) == record(found.ledger.trials)


def test_the_study_records_stopped_trials(found: Search) -> None:
    assert any(trial.stopped is not None for trial in found.ledger.trials)
    again = Study((found.study.place).read_bytes(), found.study.place).trials
    assert repr(record(again)) == repr(record(found.ledger.trials))


def test_a_race_travels_with_its_task(found: Search) -> None:
    race = race_of(found.ledger, found.ledger.of(SEARCH)[-1].request)
    task = pickle.loads(pickle.dumps(Task(1, (), 64, "bare", (), race)))
    assert (task.stage, task.race) == ("bare", race)


def test_rivals_are_the_trials_known_at_the_request(
    found: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [trial for trial in found.ledger.of(SEARCH) if trial.request.asked_after]
    last: Trial = asked[-1]
    race = race_of(found.ledger, last.request)
    assert race is not None
    known = [t for t in found.ledger.trials[: last.request.asked_after] if t.full]
    best = found.ledger.best(known)
    assert best is not None
    assert race.rivals == (best.per_sample,)
    assert race_of(found.ledger, found.ledger.of(RANDOM)[0].request) is None
    monkeypatch.delitem(found.ledger.references, race_counts(last.request.samples)[-1])
    assert race_of(found.ledger, last.request) is None, "a study of before there were races"


def test_races_do_not_depend_on_the_speed_of_workers(tmp_path: Path) -> None:
    """The rest of the budget is counted in the order of asking, however long a trial took."""
    chosen = setting(aims=(NLL,), budget=Budget(20, 16, FULL), races=True)
    results = []
    for name, slow in {"alike": (1.0, 1.0), "unlike": (1.0, 3.1), "other": (2.7, 1.0)}.items():
        (folder := tmp_path / name).mkdir()
        results.append(search(folder, chosen, workers=Simulated(Sampling(), slow)))
        results[-1].run()
    calm, *others = (record(item.ledger.trials) for item in results)
    assert any(trial["stopped"] for trial in calm)
    for other in others:
        assert other == calm
