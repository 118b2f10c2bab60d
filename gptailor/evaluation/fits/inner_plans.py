"""A prepared plan with the fits of the plans that are its models; torch is imported for fits."""

from functools import partial
from typing import TYPE_CHECKING

from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.optional_packages import require
from gptailor.prepare import Prepared

if TYPE_CHECKING:
    import torch


def with_inner_fits(
    prepared: Prepared,
    *,
    device: "torch.device | str" = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> Prepared:
    """Return a prepared plan with the fits of its inner plans; itself, and no import, without any.

    The arguments and errors are the same as in `gptailor.evaluation.fits.repair.fit`.
    """
    if not prepared.inner_plans:
        return prepared
    require("torch", "a narrowed, bridged or healed plan")
    from gptailor.evaluation.fits.repair import fit, with_fits_inside

    make = partial(fit, device=device, memory=memory, on_event=on_event, anew=anew)
    return with_fits_inside(prepared, make, on_event, anew=anew)
