"""Readers of tensors that torch reads: quantised, adapted, pickled, or for another device."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from gptailor.checkpoint.tensor import DTYPE_BITS, Quantised, TensorInfo, TensorSpec
from gptailor.methods.arrays import Array
from gptailor.program.combine import Reader
from gptailor.program.dequantise import ReadRows, rows_of
from gptailor.program.devices import CPU
from gptailor.program.file_bytes import read_into
from gptailor.program.in_memory import FLOAT_DTYPES, memory_reader
from gptailor.program.load import load_tensor


def loaded_reader(tensor: TensorInfo, device: torch.device | None) -> Reader:
    """Return a reader of a tensor that isn't stored as plain numbers.

    Without a device the reader returns arrays of NumPy's.
    """
    place = device or CPU
    if isinstance(tensor.form, Quantised):
        reader = _rows_reader(rows_of(tensor, tensor.form, load_tensor), tensor.spec, place)
    else:
        reader = memory_reader(load_tensor(tensor), place)
    if device is not None:
        return reader

    def read(start: int, end: int) -> Float[Array, " n"]:
        values = reader(start, end)
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()

    return read


def device_reader(tensor: TensorInfo, file: int, device: torch.device) -> Reader:
    """Return a reader of plain numbers in an open file that moves them to a device."""
    dtype, width = FLOAT_DTYPES[tensor.spec.dtype], DTYPE_BITS[tensor.spec.dtype] // 8
    buffer = torch.empty(0, dtype=torch.uint8)

    def read(start: int, end: int) -> Float[Tensor, " n"]:
        nonlocal buffer
        size = (end - start) * width
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        stretch = buffer[:size]
        read_into(stretch.numpy().data, file, tensor.offset + start * width, tensor.file)
        return stretch.view(dtype).to(device)

    return read


def _rows_reader(read_rows: ReadRows, spec: TensorSpec, device: torch.device) -> Reader:
    """Return a reader of a quantised tensor, some rows at a time, which keeps the last ones."""
    width = prod(spec.shape[1:])
    kept, rows = range(0), torch.empty(0)

    def read(start: int, end: int) -> Float[Tensor, " n"]:
        nonlocal kept, rows
        needed = range(start // width, -(-end // width))
        if not (kept.start <= needed.start and needed.stop <= kept.stop):
            kept, rows = needed, read_rows(needed.start, needed.stop).reshape(-1)
        before = kept.start * width
        return rows[start - before : end - before].to(device)

    return read
