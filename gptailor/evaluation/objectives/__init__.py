"""The objectives of plans, a file for each kind.

A prepared objective is `Forward`, `Generative` or `OfPlan`. One forward pass runs the `work` of a
`Forward` objective, and its `score` reads the results. The model generates text for a `Generative`
objective. An `OfPlan` objective reads no text.
"""

from collections.abc import Callable, Mapping
from functools import partial

from gptailor.evaluation.objectives.base import ObjectiveContext, ObjectiveError, PreparedObjective
from gptailor.evaluation.objectives.generate import exact_match, prepare_rated
from gptailor.evaluation.objectives.kl import prepare_acceptance, prepare_kl
from gptailor.evaluation.objectives.likelihood import (
    prepare_margin,
    prepare_multiple_choice,
    prepare_nll,
)
from gptailor.evaluation.objectives.of_function import prepare_of_function
from gptailor.evaluation.objectives.size_and_speed import prepare_of_plan
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES

PREPARE: Mapping[str, Callable[[Objective, ObjectiveContext], PreparedObjective]] = {
    "nll": prepare_nll,
    "perplexity": partial(prepare_nll, perplexity=True),
    "kl": prepare_kl,
    "acceptance": prepare_acceptance,
    "multiple_choice": prepare_multiple_choice,
    "margin": prepare_margin,
    "generate": partial(prepare_rated, exact_match),
    "parameters": prepare_of_plan,
    "bytes": prepare_of_plan,
    "kv_cache": prepare_of_plan,
    "latency": prepare_of_plan,
}
"""The function that prepares each objective of the core."""


__all__ = [
    "base", "generate", "kl", "likelihood", "of_function", "size_and_speed", "tokens",
]  # fmt: skip


def prepare_objective(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """Prepare an objective's samples, once for all plans.

    The prepared direction is the objective's own; `agree_on_direction` compares a plan's with it.
    Raises CalibrationError for an unusable file, ObjectiveError for an invalid argument.
    """
    own = PREPARE.get(objective.name) or OBJECTIVES[objective.name].prepare
    return (own or prepare_of_function)(objective, context)


def agree_on_direction(objective: Objective, prepared: PreparedObjective) -> None:
    """Raise ObjectiveError if a plan optimises in the worse direction.

    The directions of lm-eval's metrics are unknown until an objective is prepared.
    """
    if objective.direction != prepared.direction:
        better = "smaller" if prepared.direction == "minimize" else "larger"
        message = f"a {better} '{prepared.name}' is better: write '{prepared.direction}'"
        raise ObjectiveError(message)
