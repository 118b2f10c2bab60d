"""Whole tensors whose values are not plain bytes in a row, from disk into memory."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.checkpoint.forms import Adapted, Aligned, Dequantised, Pickled
from gptailor.checkpoint.header import TensorInfo
from gptailor.program.adapted import load_adapted
from gptailor.program.foreign import load_packed, load_pickled
from gptailor.program.raw import load_raw


def load_tensor(tensor: TensorInfo) -> Shaped[Tensor, "..."]:
    """The tensor in its own shape; of its spec's dtype, or float32 where that is exact.

    Raises CheckpointError where the file is not what its header said.
    """
    match tensor.form:
        case None:
            return load_raw(tensor)
        case Pickled():
            return load_pickled(tensor, tensor.form)
        case Dequantised():
            return load_packed(tensor, tensor.form)
        case Adapted():
            return load_adapted(tensor, tensor.form, load_tensor)
        case Aligned():
            return _aligned(tensor.form)


def _aligned(form: Aligned) -> Shaped[Tensor, "..."]:
    """The pieces' rows, one after another; each tensor is loaded once."""
    loaded: dict[TensorInfo, Tensor] = {}
    for piece in form.pieces:
        if piece.tensor not in loaded:
            loaded[piece.tensor] = load_tensor(piece.tensor)
    rows = [loaded[p.tensor][p.first : p.first + p.count] for p in form.pieces]
    dtype = rows[0].dtype
    if any(row.dtype != dtype for row in rows):
        rows = [row.to(torch.float32) for row in rows]
    return torch.cat(rows)
