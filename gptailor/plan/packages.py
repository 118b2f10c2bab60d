"""The installed packages that a plan's objectives come from."""

from gptailor.plan.measures import measured
from gptailor.plan.plan import Plan
from gptailor.plan.registry import OBJECTIVES


def objective_packages(plan: Plan) -> dict[str, str]:
    """Return package and version by the name of each objective that isn't gptailor's own."""
    names = {objective.name for _, objective in measured(plan)} - OBJECTIVES.own
    return {name: str(OBJECTIVES.package(name)) for name in sorted(names) if name in OBJECTIVES}
