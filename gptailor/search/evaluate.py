"""The search's side of `evaluate.trial`: its judge, and what is measured before and after."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

import torch

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.dtype import quick_dtype
from gptailor.evaluate.heal.heal import OnHealing
from gptailor.evaluate.outcome import Score
from gptailor.evaluate.rivals import Race
from gptailor.evaluate.trial import Outcomes, Placement, Trials, opened
from gptailor.plan.faults import Origin, Source, TailorError
from gptailor.plan.plan import Plan
from gptailor.plan.stage import STAGES, Stage
from gptailor.search.run.per_sample import per_objective, per_sample_to_json
from gptailor.search.run.schedule import Budget
from gptailor.search.run.study import Study
from gptailor.search.run.trials import Trial, json_numbers, read_outcomes
from gptailor.search.run.workers import BASE, Alone, Workers
from gptailor.search.settings import Resources, Settings
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space
from gptailor.search.starts import Starts, greedy_removal, wholes

_GLANCE = 32
"""Samples that block influence is measured on where a search has no cheaper fidelity, at most."""
_INFLUENCE, _REMOVAL = "block influence", "greedy removal"
"""Notes of a study: what was measured before its first trial."""


@final
@dataclass(frozen=True)
class TrialsJudge:
    """A judge on this device."""

    trials: Trials

    def __call__(
        self, plans: Sequence[Plan], share: float, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, Outcomes]]:
        """What becomes of each plan on a share of the samples that the search sees."""
        return self.trials.run(plans, round(share * self.trials.full), stage=stage, race=race)


def trials_of(
    plan: Plan,
    models: Mapping[str, Opened],
    chosen: Settings,
    where: Resources,
    on_healing: OnHealing | None = None,
) -> Trials:
    """The trials of an opened plan."""
    kind = None if where.dtype is None else getattr(torch, where.dtype)
    return Trials(
        plan,
        models,
        objectives=list(zip(chosen.objectives, chosen.directed, strict=True)),
        folder=chosen.folder,
        place=Placement(where.device, kind, where.memory, where.gpus_per_worker),
        fidelity=chosen.fidelity,
        seed=chosen.seed,
        on_healing=on_healing,
    )


def computing(where: Resources, models: Mapping[str, Opened]) -> Resources:
    """With the dtype that models compute in there, unless it is their own."""
    dtype = None if where.dtype else quick_dtype(models, where.device)
    return replace(where, dtype=str(dtype).removeprefix("torch.")) if dtype else where


def movable(plan: Plan) -> Plan:
    """The plan with its folder, and family files, seen from any other; paths start there."""
    origin = plan.origin
    if origin is None:
        origin = Origin(Source("<plan>", ""), Path())
    families = tuple(file.absolute() for file in origin.families)
    return plan.read_from(replace(origin, folder=origin.folder.absolute(), families=families))


def judge_of(plan: Plan, chosen: Settings, where: Resources) -> TrialsJudge:
    """A judge made anew, of a plan and settings that are movable: on another machine."""
    plan, models, _ = opened(plan)
    return TrialsJudge(trials_of(plan, models, chosen, where))


def workers_of(
    trials: Trials, chosen: Settings, where: Resources, on_progress: Callable[[str], None]
) -> AbstractContextManager[Workers]:
    """This process, or a cluster's. Raises TailorError where Ray is wanted and not there."""
    if where.ray is None:
        return nullcontext(Alone(TrialsJudge(trials)))
    try:
        from gptailor.search.run.ray_workers import RayWorkers  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise TailorError("--ray needs the package ray: pip install 'gptailor[ray]'") from error
    on_progress("beginning workers")
    anywhere = replace(chosen, folder=chosen.folder.absolute())
    make = partial(judge_of, movable(trials.plan), anywhere, where)
    return RayWorkers(
        make, where.ray, where.workers, gpus=0 if where.device == "cpu" else where.gpus_per_worker
    )


# ------------------------------------------------------------------------- before the first trial


def starts_of(
    space: Space, trials: Trials, budget: Budget, study: Study, on_progress: Callable[[str], None]
) -> Starts:
    """The starting plans, made of what the models alone say of their layers.

    That is measured once: the study remembers it, so that a later process starts in the same way.
    Raises TailorError for a forward pass without numbers.
    """
    plans, cheapest = wholes(space), budget.low / budget.full
    samples = budget.low if budget.low < budget.full else min(budget.full, _GLANCE)

    def influence(plan: Plan, name: str) -> list[float]:
        on_progress(f"measuring what each layer does in {name}")
        return list(trials.block_influence(plan, samples))

    def judge(removed: Sequence[Plan]) -> list[float]:
        on_progress(f"removing layers of the base one by one: {len(removed[0].drops)}")
        return losses(trials, removed, budget.low)

    try:
        if _INFLUENCE not in study.notes:
            study.note(_INFLUENCE, {name: influence(plan, name) for name, plan in plans.items()})
        known = study.notes[_INFLUENCE]
        if _REMOVAL not in study.notes and "base" in known:
            removed = greedy_removal(space, plans["base"], known["base"], judge, cheapest)
            study.note(_REMOVAL, list(removed))
    except ValueError as error:
        raise TailorError(f"the models can't be measured: {error}") from error
    removal = study.notes.get(_REMOVAL, ()) if "base" in known else ()
    starts = Starts(space, known, removal, cheapest)
    if starts.said:
        on_progress(starts.said)
    return starts


def losses(trials: Trials, plans: Sequence[Plan], samples: int) -> list[float]:
    """The mean over the objectives of what plans lose, each relative to its mean magnitude.

    NaN is a failure. Only for comparing these plans with each other.
    """
    rows = [[math.nan] * len(trials.objectives) for _ in plans]
    for index, outcomes in trials.run(plans, samples, stage="bare"):
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Score) and math.isfinite(outcome.value):
                sign = 1 if trials.objectives[number][1] == "minimize" else -1
                rows[index][number] = sign * outcome.value
    columns = ([abs(v) for v in column if not math.isnan(v)] for column in zip(*rows, strict=True))
    scales = [(math.fsum(sizes) / len(sizes) if sizes else 0.0) or 1.0 for sizes in columns]
    return [sum(v / s for v, s in zip(row, scales, strict=True)) / len(scales) for row in rows]


# ------------------------------------------------------------------------ after the last trial

HELD_OUT = "held out"
"""The study's note of held-out scores, so that each is made once."""

HeldOut: TypeAlias = Mapping[str, Any]
"""Held-out scores by `held_key`."""


def held_key(trial: Trial | None) -> str:
    """A trial's plan, as that was evaluated, or the base."""
    if trial is None:
        return BASE
    stage = trial.request.stage
    return trial.plan if stage == "bare" else f"{trial.plan} {stage}"


def held_out(
    study: Study,
    space: Space,
    trials: Trials,
    base: Plan,
    chosen: Sequence[Trial],
    on_progress: Callable[[str], None],
) -> HeldOut:
    """The scores of the base and of some trials' plans, those that weren't made before."""
    if not any(trials.helds):
        return {}
    known: dict[str, Any] = dict(study.notes.get(HELD_OUT, {}))
    wanted: dict[str, tuple[Plan, Stage]] = {BASE: (base, "bare")}
    wanted |= {held_key(t): (decode(space, t.request.genome), t.request.stage) for t in chosen}
    fresh = {key: plan for key, plan in wanted.items() if key not in known}
    done = 0
    for stage in STAGES:
        keys = [key for key, (_, how) in fresh.items() if how == stage]
        for index, outcomes in trials.held_out([fresh[key][0] for key in keys], stage=stage):
            done += 1
            on_progress(f"scoring on what was held out: {done} of {len(fresh)}")
            known[keys[index]] = _said(outcomes)
            study.note(HELD_OUT, known)
    return known


def _said(outcomes: Outcomes) -> dict[str, Any]:
    values, stderrs, failure = read_outcomes(outcomes)
    if values is None or stderrs is None:
        return {"failure": str(failure)}
    said: dict[str, Any] = {"values": list(values), "stderrs": json_numbers(stderrs)}
    if each := per_objective(outcomes):
        said["per_sample"] = per_sample_to_json(each)
    return said
