"""Stages of a cut plan's repair: bare, its gaps bridged, or bridged and healed."""

from typing import Final, Literal, TypeAlias

from gptailor.plan.plan import Plan

Stage: TypeAlias = Literal["bare", "bridged", "healed"]
"""Without bridges and healing; with bridges alone; with all repairs of the plan."""

STAGES: Final[tuple[Stage, ...]] = ("bare", "bridged", "healed")
"""From the cheapest to the whole plan."""


def at_stage(plan: Plan, stage: Stage) -> Plan:
    """Return the plan with the repairs of a stage alone."""
    update: dict[str, object] = {}
    if stage == "bare" and plan.bridges:
        update["bridges"] = ()
    if stage != "healed" and plan.heal is not None:
        update["heal"] = None
    return plan.model_copy(update=update) if update else plan
