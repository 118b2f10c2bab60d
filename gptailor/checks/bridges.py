"""Rules of bridges against the models: foldable weights and enough tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.tensor import FLOATS
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place
from gptailor.plan.resolved import bridge_over
from gptailor.plan.sites import open_choices
from gptailor.program.compile import moved_configuration
from gptailor.program.sources import Checked, Use


@final
@dataclass(frozen=True)
class Last:
    """The one projection that an MLP branch ends with: its name within the layer, its inputs."""

    name: str
    inputs: int


def last_projection(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Last | None:
    """Return the last projection of an MLP branch, by its layer's tensors; None for experts.

    A bridge is fitted on the inputs of this projection. Experts have inputs of their own, for
    tokens of their own, so they are fitted together on the branch's output.
    """
    ends = [name for name in shapes if projection(layout, name) == "mlp"]
    weights = [name for name in ends if name.endswith(".weight")]
    if len(weights) != 1 or any("expert" in name for name in ends):
        return None
    inputs = shapes[weights[0]][0 if layout.transposed else -1]
    return Last(weights[0].removesuffix(".weight"), inputs)


@rule("M219")
def _bridges_can_be_folded(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a bridge without weights to go into.

    It goes into the projection whose output the MLP branch adds, unchanged, to the sum.
    """
    reasons = islice(_unfoldable(checked) if checked.plan.bridges else (), 1)
    for i, reason in reasons:
        message = f"'bridge' can't be folded into the weights: {reason}"
        yield Fault("M219", message, ("bridges", i))


def _unfoldable(checked: Checked) -> Iterator[tuple[int, str]]:
    """Yield why a map can't be folded into the weights before a gap, and the bridge's number."""
    layout = checked.base.layout
    if layout.no_bridge is not None:
        yield 0, layout.no_bridge
    for slot in checked.resolved.slots:
        over = bridge_over(checked.plan, slot.position)
        if slot.dropped == "yes" or over is None:
            continue
        for use in checked.uses(slot, "mlp"):
            tensors = use.model.part(use.layer, "mlp").items()
            carriers = [t for suffix, t in tensors if projection(layout, suffix) == "mlp"]
            where = f"L{use.layer} of '{use.model.name}' has"
            if not carriers:
                yield over, f"{where} no projection in its MLP that a map could be folded into"
            for spec in (tensor.spec for tensor in carriers):
                if spec.dtype not in FLOATS:
                    yield over, f"{where} '{spec.name}' as {spec.dtype}"


def inputs_of_bridges(checked: Checked) -> dict[int, int]:
    """Return the most inputs of the fits of each bridge, by its number in the plan.

    A fit needs at least as many tokens.
    """
    widest: dict[int, int] = {}
    for slot, following in pairwise(checked.resolved.slots):
        over = bridge_over(checked.plan, slot.position)
        if over is not None and slot.dropped != "yes" and following.dropped != "no":
            for use in checked.uses(slot, "mlp"):
                widest[over] = max(widest.get(over, 0), _width(checked, use))
    return widest


def _width(checked: Checked, use: Use) -> int:
    """Return the inputs of a fit: of the layer's last projection, or a hidden state's entries."""
    tensors = use.model.part(use.layer, "mlp")
    shapes = {suffix: tensor.spec.shape for suffix, tensor in tensors.items()}
    last = last_projection(checked.base.layout, shapes)
    if last is not None:
        cut = checked.plan.width
        size = last.inputs if cut is None or not isinstance(cut.size, int) else cut.size
        return min(last.inputs, size)
    embed = checked.base.rest("embed").get(0)
    return embed.spec.shape[-1] if embed is not None and embed.spec.shape else 0


@rule("M217")
def the_undropped_plan_has_a_configuration(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if the plan without its drops has none, and is the aim of fits or teaches."""
    plan, heal = checked.plan, checked.plan.heal
    fitted: list[tuple[str, Place]] = [
        (f"'{n}'", (n,)) for n in plan.text_fits if n != "vocabulary"
    ]
    fitted = [("a bridge", ("bridges", 0))] * bool(plan.bridges) + fitted
    aims: list[tuple[str, Place, str]] = [(f"{n} is fitted to", at, "") for n, at in fitted[:1]]
    if heal is not None and heal.needs_default_teacher:
        aims.append(("'heal' learns from", ("heal",), "name another teacher: heal from NAME on …"))
    if not aims or open_choices(plan) or plan.stack is not None:
        return
    moved = moved_configuration(checked.undone)
    if isinstance(moved, Refusal):
        for what, at, help_ in aims:
            message = f"{what} the plan without its drops, and there {moved.reason}"
            yield Fault("M217", message, at, help_)
