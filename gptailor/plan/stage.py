"""Stages of a cut plan's repair: bare, its gaps bridged, or bridged and healed."""

from typing import Final, Literal, TypeAlias

from gptailor.plan.plan import Plan
from gptailor.plan.resolved import undone

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
