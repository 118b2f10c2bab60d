"""Rules of parts finer than a layer's two branches: norms, projections, patterns."""

import re
from collections import defaultdict
from collections.abc import Iterator

from gptailor.checkpoint.files import quoted
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, listed
from gptailor.plan.layer_parts import BRANCHES, PROJECTIONS, Branch, holds, is_pattern, rank
from gptailor.plan.plan import LayerBelow
from gptailor.plan.resolved import Slot
from gptailor.program.sources import Checked

_FUSED = {
    "attn.q": ("attn.qkv", "queries, keys and values are"),
    "attn.k": ("attn.qkv", "queries, keys and values are"),
    "attn.v": ("attn.qkv", "queries, keys and values are"),
    "mlp.gate": ("mlp.gate_up", "gate and up are"),
    "mlp.up": ("mlp.gate_up", "gate and up are"),
}
"""The projection that another may be a piece of."""


_Tensor = tuple[Branch, str | None, str]
"""A tensor of a layer: its branch, its role, its name within the layer."""


def _tensors(checked: Checked, slot: Slot) -> list[_Tensor]:
    """Return the tensors of a slot's layer."""
    family = checked.base.layout.family
    tensors: list[_Tensor] = []
    for branch in BRANCHES:
        first = next(iter(checked.uses(slot, branch)), None)
        names = first.model.part(first.layer, branch) if first is not None else ()
        tensors += [(branch, family.role(suffix), suffix) for suffix in names]
    return tensors


@rule("M230")
def _every_part_exists(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each part that its layer has no tensors of.

    `others` pass over layers that lack the part, unless all do.
    """
    finer = [(i, layer) for i, layer in enumerate(checked.plan.layers) if rank(layer.part) > 1]
    slots = checked.resolved.slots if finer else []
    absent: dict[tuple[str, bool], Fault] = {}
    present: set[tuple[str, bool]] = set()
    for i, layer in finer:
        key = layer.part or "", isinstance(layer, LayerBelow)
        if key in absent and not key[1]:
            continue
        tensors = _tensors(checked, slots[layer.position])
        if any(holds(layer.part, *tensor) for tensor in tensors):
            present.add(key)
        elif key not in absent:
            message, help_ = _absent(checked, key[0], layer.position, tensors)
            absent[key] = Fault("M230", message, ("layers", i), help_)
    yield from (fault for key, fault in absent.items() if not key[1] or key not in present)


def _absent(checked: Checked, part: str, position: int, tensors: list[_Tensor]) -> tuple[str, str]:
    """Return the message and the help for a part that a layer lacks."""
    layout = checked.base.layout
    if is_pattern(part):
        names = sorted(suffix for branch, _, suffix in tensors if branch == "attn") or [""]
        message = f"no tensor of L{position} fits the pattern {part}"
        return message, f"a pattern is of a whole name within the layer, such as {quoted(names[0])}"
    message = f"L{position} has no part '{part}'"
    if not layout.family.attn_out:
        what = f"what the tensors of '{layout.model_type}' do is not known"
        return f"{message}: {what}", "name them by a pattern in quotes"
    roles = {role for _, role, _ in tensors}
    fused, fused_words = _FUSED.get(part, ("", ""))
    if fused in roles:
        return f"{message}: {fused_words} one projection there", f"it is '{fused}'"
    present = [name for name in PROJECTIONS if name in roles]
    has = f"it has {listed(present)}; " if present else ""
    return message, f"{has}a pattern in quotes names any of its tensors"


_WEIGHT = re.compile(r"(\.(weight|bias)(\..*)?|_(bias|blocks|scales)|\.[^.]*)$")
"""The end of a tensor's name, after its module's name."""


@rule("M231")
def _quantised_weights_stay_whole(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a pattern that takes some tensors of a quantised weight, and not all."""
    patterns = [(i, layer) for i, layer in enumerate(checked.plan.layers) if is_pattern(layer.part)]
    if not patterns or all(model.layout.quantised is None for model in checked.models.values()):
        return
    slots = checked.resolved.slots
    for i, layer in patterns:
        modules: dict[str, set[bool]] = defaultdict(set)
        for tensor in _tensors(checked, slots[layer.position]):
            modules[_WEIGHT.sub("", tensor[2])].add(holds(layer.part, *tensor))
        torn = next((module for module, held in sorted(modules.items()) if len(held) > 1), None)
        if torn is not None:
            message = f"the pattern {layer.part} takes some tensors of '{torn}', and not all"
            help_ = f'quantised weights are several tensors: write "{torn}*"'
            yield Fault("M231", message, ("layers", i), help_)
            return
