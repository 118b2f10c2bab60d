"""Objectives with their samples, drawn once for all plans that read texts alike."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.live.language import language_config
from gptailor.evaluate.live.template import configuration, position_count
from gptailor.evaluate.objectives import agree_on_direction, prepare_objective
from gptailor.evaluate.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    Reference,
)
from gptailor.evaluate.objectives.size_and_speed import OfPlan
from gptailor.evaluate.objectives.tokens import tokenizer_of
from gptailor.evaluate.scores import Failure
from gptailor.plan.plan import Objective

_MOST_SEEN = 1024
"""Samples of an objective that a search sees at most, where nobody says how many."""
_SEEN_SHARE = 0.75
"""Of a file's samples those that a search sees then, at most."""
NOTHING_HELD = Failure("error", "no samples are left that the search doesn't see")


StatedObjective: TypeAlias = tuple[Objective, bool]
"""An objective, and whether its direction was stated: then it has to be the metric's."""


@final
class Samples(NamedTuple):
    """Where an evaluation's samples come from: a folder for relative paths, how many, a seed."""

    folder: Path = Path()
    most: int | None = None
    seed: int = 0


def prepare_objectives(
    stated: Sequence[StatedObjective],
    samples: Samples,
    tokenizer_model: Opened,
    reference: Reference,
    positions: int | None,
) -> list[PreparedObjective]:
    """The objectives with their samples, as the tokenizer of `tokenizer_model` reads them.

    `reference` runs the model that `kl` compares with, `positions` is the longest text in tokens.
    Raises CalibrationError for a file, ObjectiveError for an argument or a direction.
    """
    context = ObjectiveContext(tokenizer_of(tokenizer_model), *samples, reference, positions)
    found = [prepare_objective(objective, context) for objective, _ in stated]
    for (objective, directed), prepared in zip(stated, found, strict=True):
        if directed:
            agree_on_direction(objective, prepared)
    return found


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest text that a model of this configuration takes, in tokens; None: it has no end."""
    return position_count(configuration(language_config(config)))


def no_reference(name: str, why: str) -> ObjectiveError:
    """Why `kl` has nothing to compare with."""
    return ObjectiveError(f"'kl' compares with the model '{name}': {why}")


@final
class Parts(NamedTuple):
    """The objectives on the samples that a search sees, and on those that it doesn't."""

    seen: tuple[PreparedObjective, ...]
    held: tuple[PreparedObjective | Failure, ...]


def parts_by_tokenizer(
    samples: Samples,
    tokenizer_models: Mapping[str, Opened],
    prepare: Callable[[Samples, Opened], Sequence[PreparedObjective]],
) -> tuple[int, dict[str, Parts]]:
    """Return how many samples a search sees, and its objectives for each of some tokenizers.

    A search is to see `samples.most` samples; twice as many are drawn, and the rest held out.
    Raises ObjectiveError where an objective has fewer, and as `prepare`, which returns the
    objectives as a model's tokenizer reads them.
    """
    count = samples.most
    most = samples._replace(most=2 * (count or _MOST_SEEN))
    drawn = {key: prepare(most, model) for key, model in tokenizer_models.items()}
    found = [one for these in drawn.values() for one in these if not isinstance(one, OfPlan)]
    if not found:
        raise ObjectiveError("no objective says how good a plan is")
    if count is None:
        count = max(1, min(_MOST_SEEN, *(int(_SEEN_SHARE * one.size) for one in found)))
    elif few := [one for one in found if one.size < count]:
        many = "1 sample" if few[0].size == 1 else f"{few[0].size} samples"
        message = f"the fidelity goes up to {count} samples, and '{few[0].name}' has {many}"
        raise ObjectiveError(message)
    parts = {}
    for key, these in drawn.items():
        seen = tuple(one.part(0, count) for one in these)
        held = (
            one.part(count, 2 * count)
            if one.size > count or isinstance(one, OfPlan)
            else NOTHING_HELD
            for one in these
        )
        parts[key] = Parts(seen, tuple(held))
    return count, parts
