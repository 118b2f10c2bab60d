# ruff: noqa: PLC0415 (a format's library loads only where there is such a file)
"""Values of tensors out of PyTorch's `.bin` files and out of GGUF files."""

from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gptailor.checkpoint.error import CheckpointError, quoted
from gptailor.checkpoint.forms import Dequantised, Pickled, TensorInfo
from gptailor.checkpoint.gguf import KINDS
from gptailor.checkpoint.regular import open_regular
from gptailor.program.raw import TORCH, read_into


def load_pickled(tensor: TensorInfo, form: Pickled) -> Shaped[Tensor, "..."]:
    """A tensor of a `.bin` file, by `torch.load` with `weights_only`, in memory of its own."""
    from pickle import UnpicklingError

    try:
        found = torch.load(tensor.file, map_location="cpu", weights_only=True, mmap=True)
        value = found[form.key]
    except (UnpicklingError, RuntimeError, KeyError, OSError, ValueError) as error:
        message = f"{quoted(form.key)} can't be loaded: {str(error).splitlines()[0]}"
        raise CheckpointError("C108", message, tensor.file) from error
    spec = tensor.spec
    same = isinstance(value, Tensor) and tuple(value.shape) == spec.shape
    if not same or value.dtype != TORCH.get(spec.dtype):
        message = f"{quoted(form.key)} is not what it was when the file was opened"
        raise CheckpointError("C304", message, tensor.file)
    result: Tensor = value.detach().clone(memory_format=torch.contiguous_format)
    return result


def load_packed(tensor: TensorInfo, form: Dequantised) -> Float[Tensor, "..."]:
    """A tensor of a GGUF file: dequantised to float32, its rows as Hugging Face has them.

    A plain float keeps its dtype.
    """
    kind, spec = KINDS[form.kind], tensor.spec
    buffer = bytearray(kind.bytes * (prod(spec.shape) // kind.block))
    with open_regular(tensor.file) as file:
        read_into(memoryview(buffer), file.fileno(), tensor.offset, tensor.file)
    if kind.plain is not None:
        values = torch.frombuffer(buffer, dtype=TORCH[kind.plain]).reshape(spec.shape)
    else:
        values = _dequantised(buffer, tensor, form.kind)
    return _unpermuted(values, form.heads) if form.heads else values


def _dequantised(buffer: bytearray, tensor: TensorInfo, kind: str) -> Float[Tensor, "..."]:
    try:
        import numpy as np
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        message = f"{quoted(tensor.spec.name)} is {kind}; the package 'gguf' dequantises it"
        raise CheckpointError("C110", message, tensor.file, "pip install gguf") from error
    rows = np.frombuffer(buffer, dtype=np.uint8).reshape((*tensor.spec.shape[:-1], -1))
    values = dequantize(rows, GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _unpermuted(values: Float[Tensor, "..."], heads: int) -> Float[Tensor, "..."]:
    """llama.cpp rotates neighbouring rows of a head, Hugging Face its two halves."""
    halves = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
