"""Rules of `experts` against the models: experts in all tensors, a number that a router allows."""

from collections.abc import Iterator

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.mixture import (
    Routing,
    routing,
    with_expert_count,
)
from gptailor.checks.cut_sizes import equal_in_layers
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, listed
from gptailor.plan.registry import EXPERT_TOKENS
from gptailor.plan.sites import sizes_of
from gptailor.program.layer_cuts import expert_count
from gptailor.program.sources import Checked


@rule("M240", "M241", "M220", "M317")
def experts_can_be_left_out(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a number of experts that the models' layers can't have."""
    cut = checked.plan.experts
    if cut is None:
        return
    own = model_experts(checked)
    if isinstance(own, Refusal):
        message = f"'experts' isn't supported: {own.reason}"
        yield Fault("M240", message, ("experts",), "leave it out")
        return
    sizes, at = sizes_of(checked.resolved.declared, cut.size), ("experts", "size")
    limits = routing(checked.base.layout, checked.base.config)
    refused = [size for size in sizes if size != own and not limits.allows(size)]
    if sizes and sizes[-1] > own:
        message = f"expected at most {own:,} experts, those of a layer, got {sizes[-1]:,}"
        yield Fault("M241", message, at)
    elif refused:
        message = f"a router can't choose among {refused[0]:,} experts: {_words(limits)}"
        yield Fault("M241", message, at, _allowed(limits, refused[0], own))
    elif list(sizes) == [own]:
        message = f"the models' layers have {own:,} experts, so 'experts {own}' changes nothing"
        yield Fault("M317", message, at, severity="warning")
    tokens = EXPERT_TOKENS if cut.tokens is None else cut.tokens
    if tokens < own:
        message = f"{tokens:,} tokens can't compare {own:,} experts"
        yield Fault("M220", message, ("experts", "tokens"), f"give at least {own:,}")


def _words(limits: Routing) -> str:
    """Return the limits of a router in words."""
    taken = f"a token takes {limits.taken:,}"
    if limits.groups == 1:
        return taken
    groups = f"of {limits.taken_groups:,} of {limits.groups:,} equal groups"
    return f"{taken}, {groups}, and a group has at least 2"


def _allowed(limits: Routing, size: int, own: int) -> str:
    """Return the nearest numbers of experts below and above one that is refused."""
    below = next((n for n in range(size - 1, 0, -1) if limits.allows(n)), None)
    above = next((n for n in range(size + 1, own + 1) if limits.allows(n)), None)
    nearest = [f"{n:,}" for n in (below, above) if n is not None]
    return (
        f"the nearest numbers are {listed(nearest)}"
        if len(nearest) > 1
        else (f"the nearest number is {nearest[0]}" if nearest else "leave it out")
    )


def model_experts(checked: Checked) -> int | Refusal:
    """Return the experts of each layer that has any, in all layers that a plan may take.

    A refusal says why they can't be left out.
    """
    base = checked.base
    if not base.layout.known:
        return Refusal(f"model type '{base.layout.model_type}' is not known")
    count = equal_in_layers(checked, expert_count, "experts")
    if count is None:
        return Refusal("the models have no experts")
    if isinstance(count, Refusal):
        return count
    changed = with_expert_count(base.layout, base.config, count, count)
    return changed if isinstance(changed, Refusal) else count
