"""Stages of a cut plan's repair: bare, its gaps bridged, or bridged and healed."""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from gptailor.plan.layers import undone
from gptailor.plan.plan import CUTS, Plan
from gptailor.plan.sites import Role, sites

Stage: TypeAlias = Literal["uncut", "bare", "bridged", "healed"]
"""With nothing dropped; cut, without bridges and healing; with bridges alone; with all repairs."""

STAGES: Final[tuple[Stage, ...]] = ("uncut", "bare", "bridged", "healed")
"""From the recipe alone to the whole plan."""


def at_stage(plan: Plan, stage: Stage) -> Plan:
    """Return the plan with the repairs of a stage alone."""
    if stage == "uncut":
        return undone(plan)
    update: dict[str, object] = {}
    if stage == "bare" and plan.bridges:
        update["bridges"] = ()
    if stage != "healed" and plan.heal is not None:
        update["heal"] = None
    return plan.model_copy(update=update) if update else plan


HEALED_IN_VAIN: Final = "healing changed nothing"
"""The words for a plan whose layers healing left as they were."""


def stage_words(
    stage: Stage, before: Sequence[float | None] | None, scores: Sequence[float | None] | None
) -> str:
    """Return `bridged`, `healed`, or `healing changed nothing`; nothing for a bare plan.

    `before` are the plan's scores before it was healed. Healing that leaves every layer as it was
    leaves the scores too.
    """
    if stage == "healed" and before is not None and scores is not None:
        return HEALED_IN_VAIN if list(before) == list(scores) else stage
    return "" if stage == "bare" else stage


# ------------------------------------------------------------------------------ stages of a search

CUT_ROLES: Final[frozenset[Role]] = frozenset({"drop", "cut", "window", *CUTS})
"""The roles of choices that decide what leaves: layers, tokens or neurons."""
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
    """Return how a search scores plans of an open plan: `cuts bridged, finalists healed`."""
    if not cuts(plan):
        return ""
    recipes = "recipes uncut, " if separates(plan) else ""
    if plan.heal is not None:
        return f"{recipes}cuts {'bridged' if plan.bridges else 'bare'}, finalists healed"
    return f"{recipes}cuts bare" + (", finalists bridged" if plan.bridges else "")
