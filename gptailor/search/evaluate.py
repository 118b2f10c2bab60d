"""Trials as a search's judge: scores as pairs of numbers, and what is measured before the first."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.outcome import Outcome, Score
from gptailor.evaluate.samples import Wish
from gptailor.evaluate.trial import Placement, Trials, opened
from gptailor.plan.faults import Origin, Source
from gptailor.plan.plan import Plan
from gptailor.search.compositions import wholes
from gptailor.search.run.schedule import Budget
from gptailor.search.run.study import Study
from gptailor.search.run.trials import Aim, TrialOutcome
from gptailor.search.settings import Resources, Settings
from gptailor.search.space.space import Space
from gptailor.search.starts import Starts, greedy_removal

GLANCE = 32
"""Samples that block influence is measured on where a search has no cheaper fidelity, at most."""


@final
@dataclass(frozen=True)
class TrialsJudge:
    """A judge on this device."""

    trials: Trials

    def __call__(
        self, plans: Sequence[Plan], share: float, *, bridged: bool
    ) -> Iterator[tuple[int, tuple[TrialOutcome, ...]]]:
        """What becomes of each plan on a share of the samples that the search sees."""
        samples = round(share * self.trials.full)
        for index, outcomes in self.trials.run(plans, samples, bridged=bridged):
            yield index, tuple(map(plain_outcome, outcomes))


def trials_of(
    plan: Plan, models: Mapping[str, Opened], chosen: Settings, where: Resources
) -> Trials:
    """The trials of an opened plan."""
    kind = None if where.dtype is None else getattr(torch, where.dtype)
    pairs = zip(chosen.objectives, chosen.directed, strict=True)
    return Trials(
        plan,
        models,
        objectives=[Wish(*pair) for pair in pairs],
        folder=chosen.folder,
        place=Placement(where.device, kind, where.memory),
        fidelity=chosen.fidelity,
        seed=chosen.seed,
    )


def movable(plan: Plan) -> Plan:
    """The plan with its folder seen from any other; relative paths start there."""
    origin = plan.origin
    if origin is None:
        origin = Origin(Source("<plan>", ""), Path())
    return plan.read_from(replace(origin, folder=origin.folder.absolute()))


def judge_of(plan: Plan, chosen: Settings, where: Resources) -> TrialsJudge:
    """A judge made anew, of a plan and settings that are movable: on another machine."""
    plan, models, _ = opened(plan)
    return TrialsJudge(trials_of(plan, models, chosen, where))


def plain_outcome(outcome: Outcome) -> TrialOutcome:
    """A score's value and error, or a failure's message."""
    if isinstance(outcome, Score):
        return outcome.value, outcome.stderr
    return str(outcome)


def aims_of(trials: Trials) -> tuple[Aim, ...]:
    """The objectives as a search has them."""
    return tuple(Aim(*one) for one in trials.objectives)  # type: ignore[arg-type] # as literals


# ------------------------------------------------------------------------- before the first trial


def starts_of(
    space: Space, trials: Trials, budget: Budget, study: Study, doing: Callable[[str], None]
) -> Starts:
    """The starting plans, made of what the models alone say of their layers.

    That is measured once: the study remembers it, so that a later process starts in the same way.
    """
    plans = wholes(space)
    samples = budget.low if budget.low < budget.full else min(budget.full, GLANCE)
    influence = _remembered(
        study, "block influence", lambda: _influences(plans, trials, samples, doing)
    )
    removal: list[int] = []
    if "base" in influence:
        removal = _remembered(
            study,
            "greedy removal",
            lambda: _removal(space, plans["base"], influence["base"], trials, budget, doing),
        )
    return Starts(space, influence, removal, budget.low / budget.full)


def _remembered(study: Study, name: str, measure: Callable[[], Any]) -> Any:
    if name not in study.notes:
        study.note(name, measure())
    return study.notes[name]


def _influences(
    plans: Mapping[str, Plan], trials: Trials, samples: int, doing: Callable[[str], None]
) -> dict[str, list[float]]:
    found = {}
    for name, plan in plans.items():
        doing(f"measuring what each layer does in {name}")
        found[name] = list(trials.block_influence(plan, samples))
    return found


def _removal(
    space: Space,
    base: Plan,
    influence: Sequence[float],
    trials: Trials,
    budget: Budget,
    doing: Callable[[str], None],
) -> list[int]:
    """What greedy removal takes of the base, on the cheapest fidelity."""

    def judge(removed: Sequence[Plan]) -> list[float]:
        doing(f"removing layers of the base one by one: {len(removed[0].drops)}")
        return losses(trials, removed, budget.low)

    cheapest = budget.low / budget.full
    return list(greedy_removal(space, base, influence, judge, cheapest))


def losses(trials: Trials, plans: Sequence[Plan], samples: int) -> list[float]:
    """The mean over the objectives of what plans lose, each relative to the least loss; NaN: none.

    Only for comparing these plans with each other.
    """
    rows = [[math.nan] * len(trials.objectives) for _ in plans]
    for index, outcomes in trials.run(plans, samples, bridged=False):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Score) and math.isfinite(outcome.value):
                sign = 1 if trials.objectives[number][1] == "minimize" else -1
                rows[index][number] = sign * outcome.value
    scales = [_scale([row[n] for row in rows]) for n in range(len(trials.objectives))]
    return [sum(v / s for v, s in zip(row, scales, strict=True)) / len(scales) for row in rows]


def _scale(values: Sequence[float]) -> float:
    """The mean magnitude of values that are numbers; 1 where there is none."""
    sizes = [abs(value) for value in values if not math.isnan(value)]
    return (math.fsum(sizes) / len(sizes) if sizes else 0.0) or 1.0
