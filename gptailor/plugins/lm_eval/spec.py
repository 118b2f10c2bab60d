"""The objective `lm_eval` as checks and texts need it, without torch."""

from typing import TYPE_CHECKING

from gptailor.plan.plan import Objective
from gptailor.plan.registry import Argument, ObjectiveSpec

if TYPE_CHECKING:
    from gptailor.evaluation.objectives.base import ObjectiveContext, PreparedObjective


def _prepare(objective: Objective, context: "ObjectiveContext") -> "PreparedObjective":
    from gptailor.plugins.lm_eval.objective import prepare_lm_eval  # imports torch

    return prepare_lm_eval(objective, context)


LM_EVAL = ObjectiveSpec(
    "lm_eval",
    None,
    (
        Argument("task", "text", required=True, endings=(".yaml", ".yml")),
        Argument("metric", "text"),
    ),
    share_of_base=True,
    prepare=_prepare,
)
