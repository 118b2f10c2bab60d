"""Tensors that an adapter has changed: the model's own, and what is added to it."""

from collections.abc import Callable
from typing import assert_never

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from gptailor.checkpoint.forms import Adapted, Delta, LowRank, NewRows, Shift, TensorInfo

Load = Callable[[TensorInfo], Shaped[Tensor, "..."]]

DELTA_ENTRIES = 2**21
"""Entries that are worked on at once, in float64."""


def load_adapted(tensor: TensorInfo, form: Adapted, load: Load) -> Float32[Tensor, "..."]:
    """The tensor with all its deltas, in their order, in float32.

    Each is computed in float64 and rounded once to float32, as PEFT's `merge_and_unload` does in
    float32; blocks have a fixed size, so that the number of threads changes no bit.
    """
    values = load(form.base).to(torch.float32, copy=True).reshape(tensor.spec.shape)
    for delta in form.deltas:
        _apply(values, delta, load)
    return values


def _apply(values: Float32[Tensor, "..."], delta: Delta, load: Load) -> None:
    match delta:
        case LowRank():
            _add_low_rank(values.t() if delta.transposed else values, delta, load)
        case Shift(tensor, scale):
            values += load(tensor).double() * scale
        case NewRows(tensor, at):
            values[torch.tensor(at, dtype=torch.int64)] = load(tensor).float()
        case _:
            assert_never(delta)


def _add_low_rank(values: Float32[Tensor, "outputs inputs"], delta: LowRank, load: Load) -> None:
    """W + ΔW with ΔW = scale · b @ a; with a magnitude m, each row w of that is m · w / ‖w‖.

    In place. DoRA: arXiv 2402.09353; a row of zeros has no direction, and becomes NaN as in PEFT.
    """
    a, b = load(delta.a).double(), load(delta.b).double()
    magnitude = None if delta.magnitude is None else load(delta.magnitude).double()
    step = max(1, DELTA_ENTRIES // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        rows = slice(start, start + step)
        block = torch.addmm(values[rows].double(), b[rows], a, alpha=delta.scale)
        if magnitude is not None:
            block *= (magnitude[rows] / torch.linalg.vector_norm(block, dim=1))[:, None]
        values[rows] = block
