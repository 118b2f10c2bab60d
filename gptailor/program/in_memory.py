"""Tensors in memory combined, with the bytes that a compile of the same tensors writes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gptailor.checkpoint.tensor import TensorSpec
from gptailor.methods.arrays import FLOAT_NAMES
from gptailor.plan.faults import TailorError
from gptailor.program.combine import Reader, combined
from gptailor.program.program import Combine

FLOAT_DTYPES: dict[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in FLOAT_NAMES.items()
}
"""Dtypes that can be merged, by their names in safetensors."""

_MEMORY_STEP = 2**22
"""Entries that are combined at once."""


def combine_tensors(
    make: Combine, spec: TensorSpec, tensors: Sequence[Shaped[Tensor, "..."]]
) -> Float[Tensor, "..."]:
    """Return a merged tensor of tensors in memory, with exactly the bytes of `chunks`.

    `tensors` are those of `make.tensors`, on one device. Raises OverflowFault and NotFiniteFault,
    and TailorError for whole numbers.
    """
    for tensor, info in zip(tensors, make.tensors, strict=True):
        if tensor.dtype not in FLOAT_DTYPES.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise TailorError(f"'{info.spec.name}' is {kind}, which can't be merged")
        if tensor.shape != spec.shape:
            raise ValueError(f"'{spec.name}': {[*tensor.shape]} and {[*spec.shape]} differ")
    device = tensors[0].device
    readers = [memory_reader(tensor, device) for tensor in tensors]
    out = torch.empty(spec.elements, dtype=FLOAT_DTYPES[spec.dtype], device=device)
    offset = 0
    for part in combined(make, spec, readers, _MEMORY_STEP):
        out[offset : offset + len(part)] = part
        offset += len(part)
    return out.view(spec.shape)


def memory_reader(tensor: Shaped[Tensor, "..."], device: torch.device) -> Reader:
    """Return a reader of a tensor in memory that brings it to the device stretch by stretch."""
    flat = tensor.detach().reshape(-1)
    return lambda start, end: flat[start:end].to(device)
