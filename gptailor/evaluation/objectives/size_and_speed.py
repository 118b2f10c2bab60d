"""`parameters`, `bytes`, `kv_cache` and `latency`: objectives of a plan that need no text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout
from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.objectives import base
from gptailor.evaluation.scores import Score
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.program.compile import Compiled
from gptailor.program.size import token_cache


@final
@dataclass(frozen=True)
class OfPlan(base.PreparedObjective):
    """An objective that needs no samples, measured on headers or by the clock."""

    measure: str
    by: Literal["headers", "clock"]

    def requests(self, samples: int) -> Sequence[Request]:
        """Return no requests, since no text is read."""
        return ()


OfPlans: TypeAlias = Callable[[int, OfPlan], Score]
"""Returns the score of a plan, by its number. Raises TailorError if the plan has no score."""


def prepare_of_plan(objective: Objective, context: base.ObjectiveContext) -> OfPlan:
    """Prepare `parameters()`, `bytes()`, `kv_cache()` or `latency()`."""
    by = OBJECTIVES[objective.name].by
    assert by != "samples"
    return OfPlan(*base.traits_of(objective), (), objective.name, by)


def size_score(objective: OfPlan, compiled: Compiled, layout: Layout) -> Score:
    """Return a size, which has no error. Raises ObjectiveError for an unknown size."""
    if objective.measure == "parameters":
        size: int | Refusal = compiled.program.parameters
    elif objective.measure == "bytes":
        size = compiled.program.size
    else:
        size = token_cache(compiled, layout)
    if isinstance(size, Refusal):
        raise base.ObjectiveError(size.reason)
    return Score(float(size), 0.0, 0)
