"""What a plan is judged by: one entry for each objective of `gptailor.plan.registry`.

`prepare_objective` reads the files, makes the samples and gives a `Forward` objective, whose `work`
one forward pass does and whose `score` reads the results, or a `Judged` one, which makes text.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptailor.evaluate.objectives import lm_eval as harness_task
from gptailor.evaluate.objectives.base import (
    Direction,
    Forward,
    Judged,
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    Reference,
    Traits,
)
from gptailor.evaluate.objectives.generate import ExactMatch, exchanges
from gptailor.evaluate.objectives.kl import Divergence
from gptailor.evaluate.objectives.lm_eval import Generated, Likelihoods, instances, prompts
from gptailor.evaluate.objectives.multiple_choice import METRICS, Accuracy, Margin, questions
from gptailor.evaluate.objectives.nll import NegativeLogLikelihood, Perplexity, texts
from gptailor.evaluate.objectives.tokens import Seam
from gptailor.lang.format import objective_words
from gptailor.plan.faults import listed, nearest
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES

__all__ = [
    "PREPARE",
    "Forward",
    "Judged",
    "ObjectiveError",
    "PreparedObjective",
    "Reference",
    "agree_on_direction",
    "prepare_objective",
]

_Arguments = Mapping[str, Any]


def prepare_objective(  # noqa: PLR0913 (what an objective stands in, each by its name)
    objective: Objective,
    *,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    samples: int | None = None,
    seed: int = 0,
    reference: Reference | None = None,
    positions: int | None = None,
) -> PreparedObjective:
    """Make an objective's samples, once for all plans.

    Relative paths are relative to `folder`. `samples` is the most that will be asked for, drawn by
    `seed`; all by default. `reference` runs the model that `kl` compares with, and `positions` is
    the longest text that the models take. The objective's direction is its own: what a plan says
    is compared by `agree_on_direction`.
    Raises CalibrationError for a file that doesn't serve, ObjectiveError for an argument.
    """
    setting = ObjectiveContext(tokenizer, folder, samples, seed, reference, positions)
    return PREPARE[objective.name](objective, setting)


def agree_on_direction(objective: Objective, prepared: PreparedObjective) -> None:
    """Raise ObjectiveError where a plan wants the worse: nothing knew lm-eval's metrics before."""
    if objective.direction != prepared.direction:
        better = "smaller" if prepared.direction == "minimize" else "larger"
        message = f"'{prepared.name}' is better where it is {better}: write '{prepared.direction}'"
        raise ObjectiveError(message)


def _traits(objective: Objective) -> Traits:
    direction: Direction = OBJECTIVES[objective.name].direction or objective.direction
    name = objective_words(objective).removeprefix(f"{objective.direction} ")
    return Traits(name, direction, "spread" if objective.name == "kl" else "base")


def _nll(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    return NegativeLogLikelihood(_traits(objective), texts(_file(objective), setting))


def _perplexity(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    return Perplexity(_traits(objective), texts(_file(objective), setting))


def _kl(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    if setting.reference is None:
        raise ObjectiveError("'kl' needs a plan's models, to compare with one of them")
    model = str(objective.arguments.get("from", "base"))
    samples = texts(_file(objective), setting)
    return Divergence(_traits(objective), samples, model, setting.reference)


def _multiple_choice(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    metric = str(objective.arguments.get("metric", "acc"))
    if metric not in METRICS:
        close = nearest(metric, METRICS) or f"there are {listed(METRICS)}"
        raise ObjectiveError(f"'multiple_choice' has no metric '{metric}': {close}")
    return Accuracy(_traits(objective), questions(_file(objective), METRICS[metric], setting))


def _margin(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    length = METRICS["acc_bytes"]
    return Margin(_traits(objective), questions(_file(objective), length, setting))


def _generate(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    tasks = exchanges(_file(objective), setting)
    return ExactMatch(_traits(objective), tasks, setting.tokenizer)


def _lm_eval(objective: Objective, setting: ObjectiveContext) -> PreparedObjective:
    metric = objective.arguments.get("metric")
    name = str(objective.arguments["task"])
    task = harness_task.find(name, None if metric is None else str(metric), setting)
    traits = Traits(_traits(objective).name, task.direction)
    seam = Seam(setting.tokenizer, setting.positions)
    if task.kind == "generate_until":
        return Generated(traits, task, prompts(task, seam), seam)
    return Likelihoods(traits, task, instances(task, seam), seam)


def _file(objective: Objective) -> str:
    return str(objective.arguments["file"])


PREPARE: Mapping[str, Callable[[Objective, ObjectiveContext], PreparedObjective]] = {
    "nll": _nll,
    "perplexity": _perplexity,
    "kl": _kl,
    "multiple_choice": _multiple_choice,
    "margin": _margin,
    "generate": _generate,
    "lm_eval": _lm_eval,
}
"""How each objective of the registry gets its samples."""
