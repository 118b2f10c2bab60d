"""A plan resolved as far as the headers of its models are known, and its open choices.

The readers of models are imported where they are called: `check --alone` opens no model.
"""

from collections.abc import Mapping
from pathlib import Path

from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import entries, open_choices
from gptailor.plan.written_out import untied_choices


def left_open(plan: Plan, models: Mapping[str, Path], *, alone: bool = False) -> str:
    """Return the number of open choices, `37 choices open`, or an empty text for a closed plan.

    With `alone` the models' headers are not read.
    """
    count = open_choices(plan)
    if not count:
        return ""
    if not alone:
        resolved, known = resolved_by_headers(plan, models)
        count = resolved.choices if known else count
    return f"{count} choice{'s' * (count != 1)} open"


def resolved_by_headers(plan: Plan, models: Mapping[str, Path]) -> tuple[Resolved, bool]:
    """Return a plan resolved for its base's depth, and whether the depth is known.

    If it is unknown, the base has the layers up to the last one that the plan names. Other models
    are read only if `whole` leaves embedding and head a choice, which depends on tied heads. Raises
    PlanError for models of unknown names.
    """
    from gptailor.checkpoint.models import rebind
    from gptailor.prepare import open_all_models

    rebound, faults = rebind(plan, models)
    if faults:
        raise PlanError(faults)
    if not untied_choices(plan)[0]:
        alone = Plan(models={name: m for name, m in rebound.models.items() if name == "base"})
        rebound = alone.read_from(plan.origin) if plan.origin else alone
    opened, _ = open_all_models(rebound)
    tied = frozenset(name for name, model in opened.items() if model.layout.tied)
    if "base" in opened:
        return Resolved(plan, opened["base"].layout.count, tied), True
    named = max((n for _, entry in entries(plan) for n in entry.positions), default=-1) + 1
    return Resolved(plan, named, tied), False
