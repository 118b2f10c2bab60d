"""The workers of `gptailor search --ray`: each makes an evaluator of its own."""

import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from gptailor.evaluation.scores import Outcomes
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.plan.faults import Origin, Source
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.quantities import byte_count
from gptailor.searching.run.workers import Workers
from gptailor.searching.settings import Resources, Settings
from gptailor.searching.trial_evaluator import trials_of


@final
@dataclass(frozen=True)
class PlacedEvaluator:
    """Evaluates plans on this device. Its kind has a name."""

    trials: Trials

    @property
    def machine(self) -> str:
        """The name of the device, equal on machines of one kind."""
        device = self.trials.meter.repairs(self.trials.models).stitcher.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
        model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
        kind = model[1] if model else platform.processor() or platform.machine()
        return f"{kind}, {torch.get_num_threads()} threads"

    def __call__(
        self, plans: Sequence[Plan], samples: int, **how: Any
    ) -> Iterator[tuple[int, Outcomes]]:
        """Yield each plan's outcomes on the first samples that the search sees."""
        return self.trials.run(plans, samples, **how)


def movable(plan: Plan) -> Plan:
    """Return the plan with absolute paths, so that it can be read from any folder.

    Another machine makes the fits of inner plans itself.
    """
    origin = plan.origin
    if origin is None:
        origin = Origin(Source("<plan>", ""), Path())
    families = tuple(file.absolute() for file in origin.families)
    return plan.read_from(
        replace(origin, folder=origin.folder.absolute(), families=families, fitted={})
    )


def trial_evaluator_of(plan: Plan, chosen: Settings, where: Resources) -> PlacedEvaluator:
    """Make an evaluator on another machine, from a movable plan and settings."""
    plan, models, _ = opened(plan, device=where.device, memory=byte_count(where.memory))
    return PlacedEvaluator(trials_of(plan, models, chosen, where))


def ray_workers(
    trials: Trials, chosen: Settings, where: Resources, on_progress: Callable[[str], None]
) -> AbstractContextManager[Workers]:
    """Return the workers of the cluster `where.ray`. Raises MissingPackageError without Ray.

    Where `latency()` is an objective, workers must be machines of this kind.
    """
    require("ray", "--ray")
    from gptailor.plugins.cluster.ray_workers import RayWorkers

    assert where.ray is not None, "a search on a cluster"
    timed = any(OBJECTIVES[objective.name].by == "clock" for objective in chosen.objectives)
    like = PlacedEvaluator(trials).machine if timed else None
    on_progress("beginning workers")
    anywhere = replace(chosen, folder=chosen.folder.absolute())
    make = partial(trial_evaluator_of, movable(trials.plan), anywhere, where)
    gpus = 0 if where.device == "cpu" else where.gpus_per_worker
    return RayWorkers(make, where.ray, where.workers, gpus=gpus, like=like)
