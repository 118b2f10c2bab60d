"""Evaluate a search's trials by `evaluation.space_trials`, in this process or on a cluster."""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.dtype import quick_dtype
from gptailor.evaluation.rival_scores import Race
from gptailor.evaluation.session import Placement, Session
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.evaluation.trial import Outcomes
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import Origin, Source
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import Stage
from gptailor.program.devices import dtype_of
from gptailor.reporting.quantities import byte_count
from gptailor.searching.run.workers import CLUSTERS, Alone, Workers
from gptailor.searching.run_files import EarlierRun
from gptailor.searching.settings import Resources, Settings


@final
@dataclass(frozen=True)
class TrialEvaluator:
    """Evaluates plans on this device."""

    trials: Trials

    @property
    def machine(self) -> str:
        """The name of the device, equal on machines of one kind."""
        device = self.trials.repairs.stitcher.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
        model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
        kind = model[1] if model else platform.processor() or platform.machine()
        return f"{kind}, {torch.get_num_threads()} threads"

    def __call__(
        self, plans: Sequence[Plan], share: float, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, Outcomes]]:
        """Yield each plan's outcomes on a share of the samples that the search sees."""
        return self.trials.run(plans, round(share * self.trials.full), stage=stage, race=race)


def trials_of(
    plan: Plan,
    models: Mapping[str, Opened],
    chosen: Settings,
    where: Resources,
    on_event: OnEvent = ignore_events,
) -> Trials:
    """Return the trials of an opened plan."""
    kind = dtype_of(where.dtype)
    place = Placement(where.device, kind, byte_count(where.memory), where.gpus_per_worker, own=True)
    return Trials(
        plan,
        models,
        objectives=list(zip(chosen.objectives, chosen.directed, strict=True)),
        folder=chosen.folder,
        session=Session(place, on_event),
        fidelity=chosen.fidelity,
        seed=chosen.seed,
    )


def computing(
    where: Resources, models: Mapping[str, Opened], before: EarlierRun | None
) -> Resources:
    """Return the resources with the dtype that models compute in; None keeps their own.

    It is the dtype that was asked for, else the one in the record of the search `before`, else a
    quick one on this device.
    """
    if where.dtype is not None:
        return where
    if before is not None:
        return replace(where, dtype=before.dtype)
    dtype = quick_dtype(models, where.device)
    return replace(where, dtype=None if dtype is None else str(dtype).removeprefix("torch."))


def movable(plan: Plan) -> Plan:
    """Return the plan with absolute paths, so that it can be read from any folder."""
    origin = plan.origin
    if origin is None:
        origin = Origin(Source("<plan>", ""), Path())
    families = tuple(file.absolute() for file in origin.families)
    return plan.read_from(replace(origin, folder=origin.folder.absolute(), families=families))


def trial_evaluator_of(plan: Plan, chosen: Settings, where: Resources) -> TrialEvaluator:
    """Make an evaluator on another machine, from a movable plan and settings."""
    plan, models, _ = opened(plan)
    return TrialEvaluator(trials_of(plan, models, chosen, where))


def workers_of(
    trials: Trials, chosen: Settings, where: Resources, on_progress: Callable[[str], None]
) -> AbstractContextManager[Workers]:
    """Return this process or a cluster's workers. Raises MissingPackageError without Ray.

    Where `latency()` is an objective, workers must be machines of this kind.
    """
    if where.ray is None:
        return nullcontext(Alone(TrialEvaluator(trials)))
    timed = any(OBJECTIVES[objective.name].by == "clock" for objective in chosen.objectives)
    like = TrialEvaluator(trials).machine if timed else None
    require("ray", "--ray")
    cluster = CLUSTERS.required("ray", "--ray", "cluster")
    on_progress("beginning workers")
    anywhere = replace(chosen, folder=chosen.folder.absolute())
    make = partial(trial_evaluator_of, movable(trials.plan), anywhere, where)
    gpus = 0 if where.device == "cpu" else where.gpus_per_worker
    return cluster(make, where.ray, where.workers, gpus=gpus, like=like)
