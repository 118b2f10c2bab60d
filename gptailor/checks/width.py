"""Rules of `width` against the models: one MLP a layer, a size below its own, enough tokens."""

from collections.abc import Iterator

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.width import no_width, with_width
from gptailor.checks.cut_sizes import equal_in_layers
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault
from gptailor.plan.registry import WIDTH_TOKENS
from gptailor.plan.sites import sizes_of
from gptailor.program.layer_cuts import layer_width
from gptailor.program.sources import Checked

_TILE, _BLOCK = 64, 256
"""Neurons of a tile of matrix kernels, and of a block of GGUF's K-quants."""


@rule("M240", "M241", "M220", "M317")
def mlps_can_be_narrowed(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a width that the models' MLPs can't have, and a warning for an odd one."""
    cut = checked.plan.width
    if cut is None:
        return
    own = model_width(checked)
    if isinstance(own, Refusal):
        yield Fault("M240", f"'width' isn't supported: {own.reason}", ("width",), "leave it out")
        return
    sizes = sizes_of(checked.resolved.declared, cut.size)
    if sizes and sizes[-1] > own:
        message = f"expected at most {own:,} neurons, those of the models' MLPs, got {sizes[-1]:,}"
        yield Fault("M241", message, ("width", "size"))
    elif sizes == (own,):
        message = f"the models' MLPs have {own:,} neurons, so 'width {own}' changes nothing"
        yield Fault("M317", message, ("width", "size"), severity="warning")
    elif odd := [size for size in sizes if size != own and size % _TILE]:
        message = f"{odd[0]:,} isn't a multiple of {_TILE}: kernels are slower at such a width"
        help_ = f"K-quants of GGUF need a multiple of {_BLOCK}"
        yield Fault("M317", message, ("width", "size"), help_, severity="warning")
    tokens = WIDTH_TOKENS if cut.tokens is None else cut.tokens
    if tokens < own:
        message = f"{tokens:,} tokens can't determine a fit on {own:,} inputs"
        at = ("width",) if cut.tokens is None else ("width", "tokens")
        help_ = f"give at least {own:,}; ten times as many are a good start"
        yield Fault("M220", message, at, help_)


def model_width(checked: Checked) -> int | Refusal:
    """Return the number of neurons of all MLPs that a plan may take, dropped layers' too.

    A refusal says why they can't be narrowed together.
    """
    base = checked.base
    if (reason := no_width(base.layout)) is not None:
        return Refusal(reason)
    width = equal_in_layers(checked, layer_width, "neurons")
    if isinstance(width, Refusal):
        return width
    assert width is not None, "a model has layers"
    narrowed = with_width(base.layout, base.config, width, width)
    return narrowed if isinstance(narrowed, Refusal) else width
