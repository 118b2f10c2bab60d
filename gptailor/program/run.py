"""Tensors of files combined for compile: read → chunk → combined, and the bytes out.

NumPy computes on the CPU, so a merge of plain files doesn't import torch. torch reads quantised,
adapted and pickled tensors, and computes on another device. A stitch and a bridge combine tensors
in memory, by `combine_tensors`, with the same bits, since all share `gptailor.program.combine`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from gptailor.checkpoint.files import foresee, open_regular, read_into
from gptailor.checkpoint.tensor import DTYPE_BITS, FLOATS, TensorInfo, TensorSpec
from gptailor.methods.arrays import Array, host
from gptailor.methods.shapes import Shaped
from gptailor.plan.faults import TailorError
from gptailor.program.combine import Reader, combined, nested_reader
from gptailor.program.program import Combine, Output, stored_plainly

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 2**20
"""Bytes of one input's chunk in float32: smaller ones make threads wait for one another."""
_DEVICE_CHUNK_BYTES = 2**26
"""Bytes of a chunk on another device, because its calls take longer to begin."""
_DEVICE_LEAST = 2**20
"""The least number of entries for which a tensor is moved to another device."""
_STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def chunks(
    output: Output, *, chunk_bytes: int = CHUNK_BYTES, device: "torch.device | None" = None
) -> Iterator[memoryview]:
    """Yield the bytes of an output that is combined, in chunks, each valid until the next one.

    Reading starts with the first chunk. Memory is bounded by a few chunks for each source. Neither
    `chunk_bytes` nor the `device` that large tensors are merged on changes a bit of the result.
    Only the thread that takes the chunks computes; several threads can produce several outputs at
    once.
    """
    spec, make = output.spec, output.make
    assert isinstance(make, Combine), "copied or fitted, not combined"
    if device is not None and (device.type == "cpu" or spec.elements < _DEVICE_LEAST):
        device = None
    step = max(1, chunk_bytes // 4) if device is None else _DEVICE_CHUNK_BYTES // 4
    with ExitStack() as stack:
        if device is not None or not all(map(stored_plainly, make.tensors)):
            from gptailor.program.devices import use_one_thread

            stack.enter_context(use_one_thread())
        readers = [_file_reader(tensor, spec, stack, device, step) for tensor in make.tensors]
        yield from map(_bytes_of, combined(make, spec, readers, step))


def _bytes_of(chunk: Shaped[Array, " n"]) -> memoryview:
    if isinstance(chunk, np.ndarray):
        return chunk.view(np.uint8).data
    import torch

    raw: memoryview = host(chunk.view(torch.uint8)).data
    return raw


def _check_input(tensor: TensorInfo, target: TensorSpec) -> None:
    spec = tensor.spec
    if spec.dtype not in FLOATS:
        raise TailorError(
            f"'{spec.name}' in '{tensor.file}' is {spec.dtype}, "
            f"which can't be merged into '{target.name}'"
        )
    if spec.shape != target.shape:
        raise TailorError(
            f"'{spec.name}' in '{tensor.file}' has the shape {list(spec.shape)}, "
            f"but '{target.name}' {list(target.shape)}"
        )


def _file_reader(
    tensor: TensorInfo,
    target: TensorSpec,
    files: ExitStack,
    device: "torch.device | None",
    step: int,
) -> Reader:
    """Return a reader of a tensor on disk that fills one buffer, or of a combined tensor.

    A tensor that isn't contiguous is loaded whole while it is read. Raises TailorError for a tensor
    that can't be merged into the target.
    """
    _check_input(tensor, target)
    if isinstance(tensor.form, Combine):
        made_of = tensor.form.tensors
        readers = [_file_reader(each, tensor.spec, files, device, step) for each in made_of]
        return nested_reader(tensor.form, tensor.spec, readers, step)
    if tensor.form is not None or device is not None:
        from gptailor.program import load  # imports torch
    if tensor.form is not None:
        return load.loaded_reader(tensor, device)
    file = files.enter_context(open_regular(tensor.file)).fileno()
    width = DTYPE_BITS[tensor.spec.dtype] // 8
    foresee(file, tensor.offset, tensor.spec.size)
    buffer = np.empty(0, np.uint8)

    def read(start: int, end: int) -> Shaped[Array, " n"]:
        nonlocal buffer
        size = (end - start) * width
        if len(buffer) < size:
            buffer = np.empty(size, np.uint8) if device is None else load.bytes_for(device, size)
        read_into(buffer[:size].data, file, tensor.offset + start * width, tensor.file)
        if device is not None:
            return load.on_device(buffer[:size], tensor.spec.dtype, device)
        return buffer[:size].view(_STORED[tensor.spec.dtype])

    return read
