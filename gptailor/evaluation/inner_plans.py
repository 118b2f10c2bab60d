"""Plans with the fits of the plans that are their models: made before anything reads these."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.inner_fits import fitted_inside
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared, reopened

if TYPE_CHECKING:
    import torch

    from gptailor.evaluation.fit import Fitted


def with_inner_fits(
    prepared: Prepared,
    *,
    device: "torch.device | str" = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> Prepared:
    """Return a prepared plan with the fits of its inner plans; itself, and no import, without any.

    The arguments and errors are those of `gptailor.evaluation.repair.fit`.
    """
    plan = fit_inner_plans(
        prepared.plan, prepared.models, device=device, memory=memory, on_event=on_event, anew=anew
    )
    return reopened(prepared, plan)


def fit_inner_plans(
    plan: Plan,
    models: Mapping[str, Opened],
    *,
    device: "torch.device | str" = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> Plan:
    """Return a plan, open or closed, with the fits of its inner plans; itself without any.

    The arguments and errors are those of `with_inner_fits`.
    """

    def fitted(inner: Prepared) -> "Fitted":
        from gptailor.evaluation.repair import fit  # imports torch

        return fit(inner, device=device, memory=memory, on_event=on_event, anew=anew)

    return fitted_inside(plan, models, fitted, on_event, anew=anew)
