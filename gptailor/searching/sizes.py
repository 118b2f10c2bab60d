"""The sizes of a search's plans, from headers."""

from collections.abc import Mapping, Sequence
from typing import final

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.objectives.size_and_speed import size_score
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Objective, Plan
from gptailor.program.compile import compile_plan
from gptailor.program.size import plan_size
from gptailor.program.sources import Checked
from gptailor.searching.run.trials import Trial
from gptailor.searching.space.decode import decode
from gptailor.searching.space.space import Space


@final
class Sizes:
    """The sizes of a search's plans, from headers; each is computed once."""

    def __init__(self, space: Space, models: Mapping[str, Opened]) -> None:
        self.space = space
        self.models = models
        self.known: dict[str, OutputSize] = {}  # by the plans' digests

    def of(self, trial: Trial) -> OutputSize:
        """Return the size of a trial's plan."""
        if trial.plan not in self.known:
            self.known[trial.plan] = self.of_plan(decode(self.space, trial.request.genome))
        return self.known[trial.plan]

    def of_plan(self, plan: Plan) -> OutputSize:
        """Return the size of a closed plan."""
        return plan_size(Checked.of(plan, self.models))


def measured_sizes(checked: Checked, measures: Sequence[Objective]) -> list[float]:
    """Return a closed plan's sizes by some measures.

    Raises ObjectiveError or CheckpointError for an unknown size.
    """
    compiled = compile_plan(checked)
    return [size_score(each, compiled, checked.base).value for each in measures]
