"""How far a cut plan is repaired: bare, its gaps bridged, or bridged and healed."""

from typing import Final, Literal, TypeAlias

from gptailor.plan.plan import Plan

Stage: TypeAlias = Literal["bare", "bridged", "healed"]
"""Without bridges and healing; with its bridges alone; with all that the plan says."""

STAGES: Final[tuple[Stage, ...]] = ("bare", "bridged", "healed")
"""From the cheapest to the whole plan."""


def at_stage(plan: Plan, stage: Stage) -> Plan:
    """The plan with no more than that stage has."""
    update: dict[str, object] = {}
    if stage == "bare" and plan.bridges:
        update["bridges"] = ()
    if stage != "healed" and plan.heal is not None:
        update["heal"] = None
    return plan.model_copy(update=update) if update else plan
