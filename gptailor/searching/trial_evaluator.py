"""Evaluate a search's trials by `evaluation.space_trials`, in this process or on a cluster."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.space_trials import Trials
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.plan import Plan
from gptailor.program.devices import quick_dtype
from gptailor.searching.run.records import RunRecord
from gptailor.searching.run.workers import CLUSTERS, Alone, Workers
from gptailor.searching.settings import Resources, Settings


def trials_of(
    plan: Plan,
    models: Mapping[str, Opened],
    chosen: Settings,
    where: Resources,
    on_event: OnEvent = ignore_events,
) -> Trials:
    """Return the trials of an opened plan."""
    place = Placement.of(where.device, where.dtype, where.memory)
    place = place._replace(gpus=where.gpus_per_worker, own=True)
    return Trials(
        plan,
        models,
        objectives=list(zip(chosen.objectives, chosen.directed, strict=True)),
        folder=chosen.folder,
        meter=Meter(place, on_event),
        fidelity=chosen.fidelity,
        seed=chosen.seed,
    )


def computing(
    where: Resources, models: Mapping[str, Opened], before: RunRecord | None
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


def workers_of(
    trials: Trials, chosen: Settings, where: Resources, on_progress: Callable[[str], None]
) -> AbstractContextManager[Workers]:
    """Return this process, or the workers of a plugin's cluster."""
    if where.ray is None:
        return nullcontext(Alone(trials.run))
    return CLUSTERS.required("ray", "--ray", "cluster")(trials, chosen, where, on_progress)
