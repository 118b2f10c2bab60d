"""A fit folded into the projections whose outputs an MLP branch adds up."""

from collections.abc import Mapping

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from gptailor.checkpoint.layout import Layout, projection
from gptailor.checks.bridging import last_projection
from gptailor.evaluate.bridge_statistics import BridgeError
from gptailor.evaluate.contents import Content
from gptailor.program.raw import TORCH


def carriers(layout: Layout, content: Content) -> list[str]:
    """The tensors of a layer that are the projections its MLP branch ends with."""
    names = [output.spec.name for output in content.outputs]
    return [name for name in names if projection(layout, name) == "mlp"]


def widths(layout: Layout, content: Content, hidden: int) -> tuple[int, int]:
    """The entries of what a bridge over a gap after this layer is fitted on, and of what it makes.

    The inputs of the branch's last projection; of a branch of experts, its outputs.
    """
    shapes = {output.spec.name: output.spec.shape for output in content.outputs}
    last = last_projection(layout, shapes)
    return (hidden if last is None else last.inputs), hidden


def fold_fit(
    change: Float64[Tensor, " width_in width_out"],
    projections: Mapping[str, Shaped[Tensor, "..."]],
    layout: Layout,
    dtypes: Mapping[str, str],
) -> dict[str, Shaped[Tensor, "..."]]:
    """The projections of a branch that is to add XC too, C the change; rounded once, on the CPU.

    Where X are the inputs of its one last projection, a weight A (h = Ax + b) becomes A + Cᵀ, and b
    stays. Where they are the outputs of a branch of experts, a sum of theirs, each expert's A (the
    last two axes, whatever stands before them) becomes WᵀA and its b Wᵀb, W = I + C. Weights that
    are stored as (inputs, outputs) are transposed. `dtypes` are the results' by safetensors' names.
    Raises BridgeError (C807) where one can't hold a value.
    """
    last = last_projection(layout, {name: tensor.shape for name, tensor in projections.items()})
    made = {}
    for name, tensor in projections.items():
        wide = tensor.to(device=change.device, dtype=change.dtype)
        if last is None:
            wide = wide + _mapped(change, wide, transposed=layout.transposed)
        elif wide.dim() > 1:
            wide = wide + (change if layout.transposed else change.T)
        rounded = wide.to(TORCH[dtypes[name]])
        if not bool(torch.isfinite(rounded).all()):
            raise BridgeError("C807", f"'{name}' bridged has values that {dtypes[name]} can't hold")
        made[name] = rounded.contiguous().cpu()
    return made


def _mapped(
    change: Float64[Tensor, " width width"], tensor: Float64[Tensor, "..."], *, transposed: bool
) -> Float64[Tensor, "..."]:
    if tensor.dim() == 1:
        return change.T @ tensor
    return tensor @ change if transposed else change.T @ tensor
