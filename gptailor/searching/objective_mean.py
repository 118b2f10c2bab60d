"""The mean over a search's objectives, if they have a mean."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptailor.searching.run.records import NotedScores, SearchSummary, WithScores


def mean_of_objectives(summary: SearchSummary) -> SearchSummary | None:
    """Return the summary as if the mean of its objectives were the only objective.

    Return None if the objectives have no mean. They have a mean, with equal weights, if all have
    one unit and one direction.
    """
    numbers = () if summary.verdict is None else summary.verdict.numbers
    aims = [summary.objectives[number] for number in numbers]
    alike = {(aim.direction, aim.unit, aim.scale) for aim in aims}
    if len(aims) < 2 or len(alike) > 1 or aims[0].unit == "":
        return None

    def mean(values: Sequence[float | None] | None) -> tuple[float, ...] | None:
        some = None if values is None else [values[i] for i in numbers]
        known = [value for value in some or () if value is not None]
        return (math.fsum(known) / len(numbers),) if len(known) == len(numbers) else None

    def error(errors: Sequence[float | None] | None) -> tuple[float | None] | None:
        if errors is None:
            return None
        each = [math.inf if (width := errors[i]) is None else width for i in numbers]
        size = math.hypot(*each) / len(numbers)
        return (size if math.isfinite(size) else None,)

    def averaged(scores: Any) -> Any:
        if not isinstance(scores, WithScores | NotedScores):
            return scores  # a failure, or None
        makers: Mapping[str, Callable[[Any], Any]]
        makers = {"values": mean, "stderrs": error, "before": mean, "held": averaged}
        parts = ((name, makers[name]) for name in type(scores).model_fields if name in makers)
        return scores.model_copy(update={name: made(getattr(scores, name)) for name, made in parts})

    update = {
        "base": averaged(summary.base),
        "best": averaged(summary.best),
        "found": averaged(summary.found),
        "recipe": averaged(summary.recipe),
        "random": summary.random.model_copy(update={"best": averaged(summary.random.best)}),
        "starts": tuple(averaged(row) for row in summary.starts),
        "objectives": (aims[0]._replace(name=f"mean of {len(numbers)} objectives"),),
    }
    return summary.model_copy(update=update)
