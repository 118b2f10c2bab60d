"""The installed packages that a plan's methods, fits and objectives come from."""

from collections.abc import Iterable, Iterator
from typing import Any

from gptailor.plan import sites
from gptailor.plan.doors import Door
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import GAP_FITS, METHODS, OBJECTIVES, STRATEGIES


def search_packages(plan: Plan, objectives: Iterable[Objective], strategy: str) -> tuple[str, ...]:
    """Return `NAME of PACKAGE VERSION` for each name of a search that isn't gptailor's own."""
    calls = (call for _, recipe in sites.recipes(plan) for _, call in sites.calls(recipe))
    return (
        *_of(METHODS, (call.name for call in calls)),
        *_of(GAP_FITS, (bridge.by for bridge in plan.bridges if bridge.by is not None)),
        *_of(OBJECTIVES, (objective.name for objective in objectives)),
        *_of(STRATEGIES, [strategy]),
    )


def _of(door: Door[Any], names: Iterable[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if (package := door.package(name)) is not None:
            yield f"{name} of {package}"
