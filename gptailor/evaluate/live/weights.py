"""The tensors that a program's outputs are, in memory on a device: loaded, or combined there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.checkpoint.tensor import TensorInfo
from gptailor.program.load import load_tensor
from gptailor.program.program import Copy, Output, unbridged
from gptailor.program.run import combine_tensors

_TENSOR_ALIGNMENT = 64
"""Bytes; what torch aligns its tensors to on the CPU."""


@final
class TensorMaker:
    """Makes outputs on a device. With `keep`, each tensor of a model is read once and stays."""

    def __init__(self, device: torch.device, *, keep: bool) -> None:
        self.device = device
        self.keep = keep
        self._loaded: dict[TensorInfo, Tensor] = {}

    def make(self, output: Output) -> Shaped[Tensor, "..."]:
        """The output as it is in a compiled folder, bit for bit, but for a bridge; not to be
        written into.

        A tensor that is copied may be shared by all who ask. Raises CheckpointError where a file
        is not what its header said, OverflowFault where a merge overflows.
        """
        make = unbridged(output.make)
        if isinstance(make, Copy):
            return self._load(make.source)
        tensors = [self._load(tensor) for tensor in make.tensors]
        return combine_tensors(make, replace(output.spec, name=make.place), tensors)

    def _load(self, tensor: TensorInfo) -> Tensor:
        if (known := self._loaded.get(tensor)) is not None:
            return known
        loaded = aligned_tensor(load_tensor(tensor).to(self.device))
        if self.keep:
            self._loaded[tensor] = loaded
        return loaded


def aligned_tensor(tensor: Tensor) -> Tensor:
    """The tensor in memory that begins where torch's own allocations do.

    The CPU's matrix products choose their kernels by it, and so round otherwise by some 1e-7: the
    same layer, read again, must compute the same.
    """
    return tensor.clone() if tensor.is_cpu and tensor.data_ptr() % _TENSOR_ALIGNMENT else tensor


def size_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
