"""`parameters`, `kv_cache` and `latency`: what a plan is, whatever it says of a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout
from gptailor.evaluate.forward.requests import Request
from gptailor.evaluate.objectives import base
from gptailor.evaluate.scores import Score
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.program.compile import Compiled
from gptailor.program.size import token_cache


@final
@dataclass(frozen=True)
class OfPlan(base.PreparedObjective):
    """An objective that needs no samples: of headers, or of the clock."""

    measure: str
    by: Literal["headers", "clock"]

    def requests(self, samples: int) -> Sequence[Request]:
        """None: no text is read."""
        return ()


OfPlans: TypeAlias = Callable[[int, OfPlan], Score]
"""What a plan, by its number, has by such an objective. Raises TailorError where it has none."""


def prepare_of_plan(objective: Objective, context: base.ObjectiveContext) -> OfPlan:
    """`parameters()`, `kv_cache()` or `latency()`."""
    by = OBJECTIVES[objective.name].by
    assert by != "samples"
    return OfPlan(*base.traits_of(objective), (), objective.name, by)


def size_score(objective: OfPlan, compiled: Compiled, layout: Layout) -> Score:
    """Return a size, which has no error. Raises ObjectiveError for an unknown one."""
    if objective.measure == "parameters":
        found: int | Refusal = compiled.program.parameters
    else:
        found = token_cache(compiled, layout)
    if isinstance(found, Refusal):
        raise base.ObjectiveError(found.reason)
    return Score(float(found), 0.0, 0)
