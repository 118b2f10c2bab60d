"""The objectives that plans are judged by, one file each.

An objective that is ready is a `Forward` one, whose `work` one forward pass does and whose `score`
reads the results, a `Generative` one, for which the model makes text, or one `OfPlan`, for which
nothing is read.
"""

from collections.abc import Callable, Mapping
from functools import partial

from gptailor.evaluate.objectives.base import ObjectiveContext, ObjectiveError, PreparedObjective
from gptailor.evaluate.objectives.generate import prepare_generate
from gptailor.evaluate.objectives.kl import prepare_kl
from gptailor.evaluate.objectives.lm_eval import prepare_lm_eval
from gptailor.evaluate.objectives.multiple_choice import prepare_margin, prepare_multiple_choice
from gptailor.evaluate.objectives.nll import NegativeLogLikelihood, Perplexity, prepare_nll
from gptailor.evaluate.objectives.size_and_speed import prepare_of_plan
from gptailor.plan.plan import Objective

PREPARE: Mapping[str, Callable[[Objective, ObjectiveContext], PreparedObjective]] = {
    "nll": partial(prepare_nll, NegativeLogLikelihood),
    "perplexity": partial(prepare_nll, Perplexity),
    "kl": prepare_kl,
    "multiple_choice": prepare_multiple_choice,
    "margin": prepare_margin,
    "generate": prepare_generate,
    "lm_eval": prepare_lm_eval,
    "parameters": prepare_of_plan,
    "kv_cache": prepare_of_plan,
    "latency": prepare_of_plan,
}
"""How each objective of `gptailor.plan.registry` gets its samples."""

__all__ = ["base", "datasets", "generate", "kl", "nll", "size_and_speed", "tokens"]


def prepare_objective(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """Make an objective's samples, once for all plans.

    The objective's direction is its own: a plan's is compared with it by `agree_on_direction`.
    Raises CalibrationError for a file that doesn't serve, ObjectiveError for an argument.
    """
    return PREPARE[objective.name](objective, context)


def agree_on_direction(objective: Objective, prepared: PreparedObjective) -> None:
    """Raise ObjectiveError where a plan wants the worse: nothing knew lm-eval's metrics before."""
    if objective.direction != prepared.direction:
        better = "smaller" if prepared.direction == "minimize" else "larger"
        message = f"'{prepared.name}' is better where it is {better}: write '{prepared.direction}'"
        raise ObjectiveError(message)
