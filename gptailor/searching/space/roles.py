"""Roles of an open plan's choices, and the stages that a search scores plans at."""

from typing import Final

from gptailor.plan.plan import CUTS, Plan
from gptailor.plan.sites import Role, sites

CUT_ROLES: Final[frozenset[Role]] = frozenset({"drop", "cut", "window", *CUTS})
"""The roles of choices that decide cuts: of layers, tokens or neurons."""
REPAIR_ROLES: Final[frozenset[Role]] = frozenset({"bridged", "tokens", "ridge"})
"""The roles of choices that decide how a cut is repaired."""
_REPEAT_ROLES: Final[frozenset[Role]] = frozenset({"repeated", "block", "times", "item"})
"""The roles of choices that add layers, or that order them."""


def separates(plan: Plan) -> bool:
    """Return whether a search can compare the recipes of an open plan with nothing dropped.

    The plan has choices of recipes, it drops layers, and a bridge or healing repairs the cut. No
    choice adds or orders layers.
    """
    repaired = bool(plan.bridges) or plan.heal is not None
    recipes = _open_roles(plan) - CUT_ROLES - REPAIR_ROLES - _REPEAT_ROLES
    return repaired and cuts(plan) and bool(recipes) and plan.stack is None and not plan.repeats


def cuts(plan: Plan) -> bool:
    """Return whether an open plan drops layers, or makes something else smaller."""
    return bool(plan.drops or plan.cuts) or bool(_open_roles(plan) & CUT_ROLES)


def _open_roles(plan: Plan) -> set[str]:
    return {site.subject.used_as for site in sites(plan) if site.open}


def search_stages(plan: Plan) -> str:
    """Return how a search scores plans of an open plan: `cuts with bridges, the best healed`."""
    if not cuts(plan):
        return ""
    recipes = "first plans with nothing dropped, then " if separates(plan) else ""
    if plan.heal is not None:
        bridged = "with bridges" if plan.bridges else "without repair"
        return f"{recipes}cuts {bridged}; the best are healed"
    return f"{recipes}cuts without repair" + ("; the best are bridged" if plan.bridges else "")
