"""The width of MLPs: the neurons in each tensor of a layer, and the configuration's key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.family import SCALED_SUM
from gptailor.checkpoint.families.layer_config import Config, Refusal
from gptailor.checkpoint.families.layout import Layout

_KEYS = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "dff")
"""Keys of configurations that are the number of an MLP's neurons."""
_FOUR_TIMES = "n_inner"
"""The key that is null where an MLP has four times as many neurons as the hidden state entries."""


@final
@dataclass(frozen=True)
class Neurons:
    """The neurons of an MLP in one of its tensors: their axis, and how often it has all of them.

    A tensor of both gate and up has them twice, one half after the other.
    """

    axis: int
    copies: int = 1


def neurons_in(layout: Layout, name: str, shape: Sequence[int]) -> Neurons | None:
    """Return the number of neurons in a tensor of a layer, by name; None without neurons."""
    role, transposed = layout.family.role(name), layout.transposed and len(shape) == 2
    match role:
        case "mlp.gate" | "mlp.up":
            return Neurons(1 if transposed else 0)
        case "mlp.gate_up":
            return Neurons(1 if transposed else 0, copies=2)
        case "mlp.down" if len(shape) == 2:
            return Neurons(0 if transposed else 1)
    return None


def mlp_width(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> int | Refusal:
    """Return the number of neurons of a layer's one MLP, by the shapes of its MLP branch.

    A refusal names what keeps the MLP from being narrowed.
    """
    roles = {name: layout.family.role(name) for name in shapes}
    if "mlp.router" in roles.values() or any("expert" in name for name in shapes):
        return Refusal("has experts instead of one MLP")
    found = {name: neurons_in(layout, name, shape) for name, shape in shapes.items()}
    downs = [name for name in shapes if roles[name] == "mlp.down" and found[name] is not None]
    if len(downs) != 1:
        return Refusal("has several MLPs" if downs else "has no MLP")
    axis = found[downs[0]]
    assert axis is not None, "one of the tensors with neurons"
    width, hidden = shapes[downs[0]][axis.axis], shapes[downs[0]][1 - axis.axis]
    for name, shape in shapes.items():
        if (own := found[name]) is None:
            if width in shape and width != hidden:
                return Refusal(f"has an entry of '{name}' for each neuron")
        elif shape[own.axis] != width * own.copies:
            return Refusal(f"has '{name}' with another number of neurons than '{downs[0]}'")
    if not any(roles[name] in {"mlp.up", "mlp.gate_up"} for name in shapes):
        return Refusal("has an MLP with unknown inputs")
    return width


def no_width(layout: Layout) -> str | None:
    """Return the reason why MLPs of this layout can't be narrowed, or None.

    A fit changes the MLP's output, which is added to the hidden state; a factor of the sum hinders
    only bridges.
    """
    return None if layout.no_bridge == SCALED_SUM else layout.no_bridge


def with_width(layout: Layout, config: Config, before: int, width: int) -> dict[str, Any] | Refusal:
    """Return the configuration for MLPs of another width than before; or a refusal."""
    text = vision.text_of(config)
    key = next((key for key in _KEYS if text.get(key) == before), None)
    if key is None and _FOUR_TIMES in text and text[_FOUR_TIMES] is None:
        key = _FOUR_TIMES
    if key is None:
        return Refusal(f"its configuration has no number of an MLP's neurons ({before:,})")
    return vision.with_text(config, {**text, key: width})
