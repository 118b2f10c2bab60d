"""The objectives `loops` and `ends` as checks and texts need them, without torch."""

from typing import TYPE_CHECKING

from gptailor.plan.plan import Objective
from gptailor.plan.registry import Argument, ObjectiveSpec

if TYPE_CHECKING:
    from gptailor.evaluation.objectives.base import ObjectiveContext, PreparedObjective


def _prepare(objective: Objective, context: "ObjectiveContext") -> "PreparedObjective":
    from gptailor.plugins.talk.objectives import prepare_continuations  # imports torch

    return prepare_continuations(objective, context)


_ARGUMENTS = (
    Argument("file", "path", required=True, rows="opening"),
    Argument("tokens", "number"),
)
LOOPS = ObjectiveSpec("loops", "minimize", _ARGUMENTS, unit="share", prepare=_prepare)
ENDS = ObjectiveSpec(
    "ends", "maximize", _ARGUMENTS, unit="share", share_of_base=True, prepare=_prepare
)
