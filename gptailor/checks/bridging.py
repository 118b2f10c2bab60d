"""Rules of bridges against the models: what a gap's map can be folded into, and enough tokens."""

from collections.abc import Callable, Iterable, Iterator

from gptailor import outline
from gptailor.checkpoint.configuration import Refusal
from gptailor.checkpoint.header import TensorInfo
from gptailor.checkpoint.layout import projection
from gptailor.checks.fitting import FLOATS, Checked, moved, uses
from gptailor.checks.merging import open_choices
from gptailor.diagnostics import Fault
from gptailor.registry import BRIDGE_TOKENS


def bridges_can_be_folded(checked: Checked) -> Iterator[Fault]:
    """A bridge goes into the projection whose output the MLP branch adds, as it is, to the sum."""
    if not checked.plan.bridges:
        return
    reason = checked.base.layout.no_bridge
    if reason is not None:
        yield _refused(reason, 0)
        return
    for slot in outline.slots(checked.plan, checked.count):
        over = outline.bridge_over(checked.plan, slot.position)
        if slot.dropped == "yes" or over is None:
            continue
        for use in uses(checked, slot, "mlp"):
            why = _unfoldable(checked, use.model.part(use.layer, "mlp"))
            if why is not None:
                yield _refused(f"L{use.layer} of '{use.model.name}' {why}", over)
                return


def _refused(reason: str, i: int) -> Fault:
    return Fault("M219", f"'bridge' can't be folded into the weights: {reason}", ("bridges", i))


def _unfoldable(checked: Checked, tensors: dict[str, TensorInfo]) -> str | None:
    """Why a layer's MLP carries no map."""
    carriers = [t for rest, t in tensors.items() if projection(checked.base.layout, rest) == "mlp"]
    if not carriers:
        return "has no projection in its MLP that a map could be folded into"
    wrong = next((t for t in carriers if t.spec.dtype not in FLOATS), None)
    return None if wrong is None else f"has '{wrong.spec.name}' as {wrong.spec.dtype}"


def bridges_have_tokens_enough(checked: Checked) -> Iterator[Fault]:
    """A map of so many outputs takes at least as many tokens."""
    width = _width(checked)
    for i, bridge in enumerate(checked.plan.bridges):
        tokens = BRIDGE_TOKENS if bridge.tokens is None else bridge.tokens
        if isinstance(tokens, int) and tokens < width:
            message = f"{tokens:,} tokens can't determine a map of the model's {width:,} channels"
            at = ("bridges", i) if bridge.tokens is None else ("bridges", i, "tokens")
            help_ = f"give at least {width:,}; ten times as many are a good start"
            yield Fault("M220", message, at, help_)


def _width(checked: Checked) -> int:
    """The entries of a hidden state: those of an embedding."""
    embed = checked.base.rest("embed").get(0)
    return embed.spec.shape[-1] if embed is not None and embed.spec.shape else 0


def what_is_dropped_can_be_undone(checked: Checked) -> Iterator[Fault]:
    """A bridge is fitted to the model with nothing dropped, which has to have a configuration."""
    plan = checked.plan
    if not plan.bridges or open_choices(plan) or plan.stack is not None:
        return
    undone = plan.model_copy(update={"drops": (), "bridges": ()})
    made = moved(Checked(undone, checked.models))
    if isinstance(made, Refusal):
        message = f"a bridge is fitted to the plan without its drops, and there {made.reason}"
        yield Fault("M217", message, ("bridges", 0))


BRIDGING: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    bridges_can_be_folded,
    bridges_have_tokens_enough,
    what_is_dropped_can_be_undone,
)
