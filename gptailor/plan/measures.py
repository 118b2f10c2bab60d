"""The measures that a plan names: objectives and requirements of its search, and expectations."""

from collections.abc import Iterator

from gptailor.plan.faults import Place
from gptailor.plan.plan import Expectation, Objective, Plan
from gptailor.plan.sites import enumerated


def bounded_measures(plan: Plan) -> Iterator[tuple[Place, Expectation]]:
    """Yield the requirements of a plan's search, then the expectations, and their places."""
    for i, required in enumerate(plan.search.requires if plan.search is not None else ()):
        yield ("search", "requires", i), required
    yield from enumerated(plan, "expects")


def measured(plan: Plan) -> Iterator[tuple[Place, Objective]]:
    """Yield all measures that a plan names, and their places."""
    for i, objective in enumerate(plan.search.objectives if plan.search is not None else ()):
        yield ("search", "objectives", i), objective
    for at, entry in bounded_measures(plan):
        yield at, entry.objective


def compared_models(plan: Plan) -> Iterator[tuple[Place, str]]:
    """Yield the models that scores are compared with, and the places that name them."""
    for place, objective in measured(plan):
        if isinstance(model := objective.arguments.get("from"), str):
            yield (*place, "arguments", "from"), model
    for at, entry in bounded_measures(plan):
        if entry.bound.of is not None:
            yield (*at, "bound", "of"), entry.bound.of
