"""A map folded into the projections whose outputs an MLP branch adds up."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from gptailor.checkpoint.layout import Layout, projection
from gptailor.evaluate.bridge_statistics import BridgeError
from gptailor.evaluate.contents import Content
from gptailor.program.raw import TORCH


def carriers(layout: Layout, content: Content) -> list[str]:
    """The tensors of a layer that a map over its MLP branch's output is folded into."""
    names = [output.spec.name for output in content.outputs]
    return [name for name in names if projection(layout, name) == "mlp"]


def fold(
    w: Float64[Tensor, " width width"],
    projections: Mapping[str, Shaped[Tensor, "..."]],
    layout: Layout,
    dtypes: Mapping[str, str],
) -> dict[str, Shaped[Tensor, "..."]]:
    """The projections of a branch whose output's rows m are to be mW, rounded once, on the CPU.

    A weight A (h = Ax; the last two axes, whatever stands before them) becomes WᵀA, or AW where
    weights are stored as (inputs, outputs); a bias b becomes Wᵀb. A branch of experts is a sum of
    their outputs, so that a map folded into each is folded into the whole. `dtypes` are the
    results' by safetensors' names. Raises BridgeError (C807) where one can't hold a value.
    """
    made = {}
    for name, tensor in projections.items():
        wide = tensor.to(device=w.device, dtype=w.dtype)
        rounded = _folded(w, wide, transposed=layout.transposed).to(TORCH[dtypes[name]])
        if not bool(torch.isfinite(rounded).all()):
            raise BridgeError("C807", f"'{name}' bridged has values that {dtypes[name]} can't hold")
        made[name] = rounded.contiguous().cpu()
    return made


def _folded(
    w: Float64[Tensor, " width width"], tensor: Float64[Tensor, "..."], *, transposed: bool
) -> Float[Tensor, "..."]:
    if tensor.dim() == 1:
        return w.T @ tensor
    return tensor @ w if transposed else w.T @ tensor
