"""Measurements before the first trial: progress, kept results, and cost."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import Mock

import pytest

from gptailor import loads
from gptailor.evaluation.objectives.base import Forward
from gptailor.evaluation.scores import Outcome, mean
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching import measuring
from gptailor.searching.measuring import repair_cost, starts_of
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.study import Study
from gptailor.searching.settings import Flags, settings
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.starts.stages import Starts
from tests.searching.landscape import TEXT, study_of

pytestmark = pytest.mark.wrong_types  # trials that only count

HEALED = Budget(40, 8, 64, "finalists", heals=True)
BRIDGED = f'{TEXT}bridge on "text.txt"\n'
BUDGET = Budget(40, 8, 64)


class Interrupted(BaseException):
    """Ctrl-C."""


@dataclass
class NoLatencies:
    """Nothing is asked of the device."""

    known: dict[str, float] = field(default_factory=dict)
    on_measured: Any = None


@dataclass(frozen=True)
class Objective:
    """Stands in for a prepared objective."""

    name: str = "nll"
    direction: Literal["minimize", "maximize"] = "minimize"
    normalise: str = "base"


@dataclass
class Measured:
    """Stands in for a search's trials; raises at the given moment."""

    at: int = -1
    asked: list[str] = field(default_factory=list)
    latencies: NoLatencies = field(default_factory=NoLatencies)
    seen: tuple[Objective, ...] = (Objective(),)

    def _count(self, what: str) -> None:
        if len(self.asked) == self.at:
            raise Interrupted
        self.asked.append(what)

    def block_influence(self, plan: Plan, samples: int) -> tuple[float, ...]:
        self._count(f"influence {samples}")
        return tuple(float(position + len(plan.layers)) for position in range(8))

    def gap_errors(self, plan: Plan, widest: int) -> list[list[float]]:
        self._count(f"gaps {widest}")
        return [[1.0 + (after - 4) ** 2] * min(widest, 7 - after) for after in range(8)]

    def run(
        self, plans: Sequence[Plan], samples: int, *, stage: Stage
    ) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        for number, plan in enumerate(plans):
            self._count(f"removal {samples}")
            yield number, (mean([float(sum(drop.position for drop in plan.drops)), 1.0]),)


def measured(
    folder: Path, trials: Measured, text: str = BRIDGED
) -> tuple[Starts, list[tuple[str, int, int]], Any]:
    space: Space = space_of(loads(text), 8)
    folder.mkdir(exist_ok=True)
    study = study_of(folder)
    progress: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "gap_errors_of", Measured.gap_errors)
        chosen = settings(space.plan, Flags(objectives=('nll("text.txt")',)))
        result, left = starts_of(
            space,
            trials,  # type: ignore[arg-type]
            BUDGET,
            study,
            chosen,
            lambda *how: progress.append(how),
        )
    assert left.measured == study.typed.measured.evaluations
    return result, progress, study


@pytest.mark.parametrize(
    ("text", "words"), [(TEXT, {"measuring", "removing"}), (BRIDGED, {"measuring"})]
)
def test_progress_grows_up_to_the_number_of_measurements(
    tmp_path: Path, text: str, words: set[str]
) -> None:
    trials = Measured()
    _, progress, _ = measured(tmp_path, trials, text)
    done = [number for _, number, _ in progress]
    assert done == sorted(done)
    assert {total for _, _, total in progress} == {len(trials.asked)}
    assert done[-1] == len(trials.asked)
    assert {what.partition(" ")[0] for what, _, _ in progress} == words


def test_the_cost_of_measuring_is_recorded(tmp_path: Path) -> None:
    trials = Measured()
    _, _, study = measured(tmp_path, trials)
    of_samples = [request for request in trials.asked if not request.startswith("gaps")]
    assert len(of_samples) < len(trials.asked)
    assert study.typed.measured.evaluations == pytest.approx(len(of_samples) / 8 + 1)
    assert {item.split()[1] for item in of_samples} == {"8"}


@pytest.mark.parametrize(
    ("text", "at"), [(BRIDGED, 0), (BRIDGED, 2), (TEXT, 0), (TEXT, 3), (TEXT, 4), (TEXT, 8)]
)
def test_interrupted_measuring_resumes(tmp_path: Path, text: str, at: int) -> None:
    whole, _, undisturbed = measured(tmp_path / "whole", every := Measured(), text)
    assert len(every.asked) > at
    with pytest.raises(Interrupted):
        measured(tmp_path / "cut", first := Measured(at), text)
    result, _, study = measured(tmp_path / "cut", second := Measured(), text)
    assert len(second.asked) < len(every.asked) or at == 0
    lost = len(first.asked) + len(second.asked) - len(every.asked)
    assert 0 <= lost < 8, "no more than one round of removal"
    kept, expected = (of.typed.measured.found for of in (study, undisturbed))
    assert kept == expected
    assert (result.influence, result.bridged) == (whole.influence, whole.bridged)
    assert [*result.removal] == [*whole.removal]


def test_a_kill_after_any_note_counts_no_cost_twice(tmp_path: Path) -> None:
    _, _, undisturbed = measured(tmp_path / "whole", Measured())
    write, left = Study.note, [0]

    def killed(study: Study, name: str, value: Any) -> None:
        write(study, name, value)
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    for at in range(1, 9):
        left[0] = at
        with pytest.MonkeyPatch.context() as patch, suppress(Interrupted):
            patch.setattr(Study, "note", killed)
            measured(tmp_path / str(at), Measured())
        _, _, study = measured(tmp_path / str(at), Measured())
        spent = (of.typed.measured.evaluations for of in (study, undisturbed))
        assert len(set(spent)) == 1, at


def test_cuts_that_a_bridge_closes_best_are_starting_plans(tmp_path: Path) -> None:
    result, _, _ = measured(tmp_path, Measured())
    assert result.bridged[0] == (5, 6), "the one gap that leaves least"
    assert len(result.bridged) == 3
    assert not result.removal, "greedy removal measures bare plans"
    without, _, _ = measured(tmp_path / "bare", trials := Measured(), TEXT)
    assert without.bridged == ()
    assert not any(request.startswith("gaps") for request in trials.asked)


def test_the_cost_of_repairs_is_unknown_for_generative_objectives() -> None:
    trials: Any = SimpleNamespace(seen=[object()], plan=loads(BRIDGED))
    assert repair_cost(trials, HEALED) is None
    assert repair_cost(trials, BUDGET) == 0, "nothing is repaired"


def test_the_cost_of_repairs_depends_on_the_tokens_of_a_text(tmp_path: Path) -> None:
    def cost(text: str) -> float:
        (tmp_path / "text.txt").write_text(text)
        seen = [Mock(spec=Forward)]
        seen[0].requests.return_value = [SimpleNamespace(tokens=range(100))]
        trials: Any = SimpleNamespace(seen=seen, plan=loads(BRIDGED, folder=tmp_path))
        result = repair_cost(trials, HEALED)
        assert result is not None
        return result

    assert cost("word " * 6000) == pytest.approx(2 * 10_000 / 100)
    assert cost("word " * 60_000) == pytest.approx(2 * 65_536 / 100)
