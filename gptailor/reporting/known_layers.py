"""Known layers and open choices of a plan, from the headers of its models.

The readers of models are imported where they are called: `check --alone` opens no model.
"""

from collections.abc import Mapping
from pathlib import Path

from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan
from gptailor.plan.sites import entries, open_choices

_Models = Mapping[str, Path]


def left_open(plan: Plan, models: _Models, *, alone: bool = False) -> str:
    """Return the number of open choices, `37 choices open`, or an empty text for a closed plan.

    With `alone` the models' headers are not read.
    """
    if not open_choices(plan):
        return ""
    from gptailor.plan.written_out import searched

    count, known = (0, False) if alone else known_layer_count(plan, models)
    tied = tied_models(plan, models) if known else set()
    choices = open_choices(searched(plan, count, tied) if known else plan)
    return f"{choices} choice{'s' * (choices != 1)} open"


def tied_models(plan: Plan, models: _Models) -> set[str]:
    """Return the models with a tied head, if `whole` leaves embedding and head a choice."""
    from gptailor.plan.written_out import untied_choices

    if not untied_choices(plan)[0]:
        return set()
    from gptailor.checkpoint.models import rebind
    from gptailor.prepare import open_all_models

    opened, _ = open_all_models(rebind(plan, models)[0])
    return {name for name, model in opened.items() if model.layout.tied}


def known_layer_count(plan: Plan, models: _Models) -> tuple[int, bool]:
    """Return the base's number of layers, and whether it is known.

    If it is unknown, return the number of layers up to the last layer that the plan names. Raises
    PlanError for models of unknown names.
    """
    from gptailor.checkpoint.models import rebind
    from gptailor.prepare import open_all_models

    plan, faults = rebind(plan, models)
    if faults:
        raise PlanError(faults)
    alone = Plan(models={name: m for name, m in plan.models.items() if name == "base"})
    opened, _ = open_all_models(alone.read_from(plan.origin) if plan.origin else alone)
    if "base" in opened:
        return opened["base"].layout.count, True
    return max((n for _, entry in entries(plan) for n in entry.positions), default=-1) + 1, False
