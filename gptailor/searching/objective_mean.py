"""The mean over a search's objectives, if they have a mean."""

import math
from collections.abc import Sequence

from gptailor.searching.run.records import (
    BaseScores,
    HeldOutResult,
    NotedScores,
    SearchSummary,
    SummaryRow,
)


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

    def held_mean(held: HeldOutResult | None) -> HeldOutResult | None:
        if not isinstance(held, NotedScores):
            return held
        update = {"values": mean(held.values), "stderrs": error(held.stderrs)}
        return held.model_copy(update=update)

    def row_mean(row: SummaryRow | None) -> SummaryRow | None:
        if row is None:
            return None
        update = {
            "values": mean(row.values),
            "stderrs": error(row.stderrs),
            "before": mean(row.before),
        }
        return row.model_copy(update={**update, "held": held_mean(row.held)})

    base = BaseScores(values=mean(summary.base.values), held=held_mean(summary.base.held))
    update = {
        "base": base,
        "best": row_mean(summary.best),
        "found": row_mean(summary.found),
        "recipe": row_mean(summary.recipe),
        "random": summary.random.model_copy(update={"best": row_mean(summary.random.best)}),
        "starts": tuple(row_mean(row) for row in summary.starts),
        "objectives": (aims[0]._replace(name=f"mean of {len(numbers)} objectives"),),
    }
    return summary.model_copy(update=update)
