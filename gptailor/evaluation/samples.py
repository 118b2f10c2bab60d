"""Objectives with samples, drawn once for all plans with equal tokenizers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

from gptailor.checkpoint.models import Opened
from gptailor.checks.texts import few_samples
from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives.base import (
    ObjectiveError,
    PreparedObjective,
)
from gptailor.evaluation.objectives.size_and_speed import OfPlan
from gptailor.evaluation.scores import Failure
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Objective, Plan

_MOST_SEEN = 1024
"""The most samples of an objective that a search sees by default."""
_SEEN_SHARE = 0.75
"""The largest share of a file's samples that a search sees by default."""
NOTHING_HELD = Failure("error", "no samples are left that the search doesn't see")


StatedObjective: TypeAlias = tuple[Objective, bool]
"""An objective, and whether its direction was stated; a stated one must be the metric's."""


@final
class Samples(NamedTuple):
    """The source of an evaluation's samples: a folder for relative paths, a number, a seed."""

    folder: Path = Path()
    most: int | None = None
    seed: int = 0


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the longest text that a model takes, in tokens; None means no limit."""
    return position_count(configuration(language_config(config)))


def no_reference(name: str, why: str) -> ObjectiveError:
    """Return the error for a model that scores can't be compared with."""
    return ObjectiveError(f"there are no predictions of the model '{name}' to compare with: {why}")


@final
class Parts(NamedTuple):
    """The objectives on the samples that a search sees, and on the held-out samples."""

    seen: tuple[PreparedObjective, ...]
    held: tuple[PreparedObjective | Failure, ...]


def parts_by_tokenizer(
    plan: Plan,
    samples: Samples,
    tokenizer_models: Mapping[str, Opened],
    prepare: Callable[[Samples, Opened], Sequence[PreparedObjective]],
) -> tuple[int, dict[str, Parts]]:
    """Return the number of samples that a search sees, and its objectives by tokenizer.

    A search is to see `samples.most` samples. Twice as many are drawn, and the second half is held
    out. `prepare` returns the objectives in tokens of a model's tokenizer. Raises PlanError (C815),
    at the fidelity of `plan`, for an objective with fewer samples, and the errors of `prepare`.
    """
    count = samples.most
    most = samples._replace(most=2 * (count or _MOST_SEEN))
    drawn = {key: prepare(most, model) for key, model in tokenizer_models.items()}
    sampled = [o for objectives in drawn.values() for o in objectives if not isinstance(o, OfPlan)]
    if not sampled:
        raise ObjectiveError("no objective measures quality")
    if count is None:
        count = max(1, min(_MOST_SEEN, *(int(_SEEN_SHARE * o.size) for o in sampled)))
    elif few := [o for o in sampled if o.size < count]:
        raise PlanError([few_samples(plan, count, few[0].name, few[0].size)])
    parts = {}
    for key, objectives in drawn.items():
        held = (
            o.part(count, 2 * count) if o.size > count or isinstance(o, OfPlan) else NOTHING_HELD
            for o in objectives
        )
        parts[key] = Parts(tuple(o.part(0, count) for o in objectives), tuple(held))
    return count, parts
