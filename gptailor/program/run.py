"""Tensors of files combined for compile: read → chunk → combined, and the bytes out.

A stitch and a bridge combine tensors in memory, by `combine_tensors`, with the same bits, since
both share everything after the reading (`gptailor.program.combine`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from threading import Lock

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.tensor import DTYPE_BITS, FLOATS, Quantised, TensorInfo, TensorSpec
from gptailor.methods.arithmetic import draw_key, kept_entries
from gptailor.plan.faults import TailorError
from gptailor.program.combine import FLOAT_DTYPES, Reader, combined, memory_reader, nested_reader
from gptailor.program.dequantise import ReadRows, rows_of
from gptailor.program.load import foresee, load_tensor, read_into
from gptailor.program.program import Combine, Output

CHUNK_BYTES = 2**19
"""Bytes of one input's chunk in float32: smaller ones make threads wait for one another."""
_DEVICE_CHUNK_BYTES = 2**26
"""Bytes of a chunk on another device, whose calls take longer to begin."""
_DEVICE_LEAST = 2**20
"""The least number of entries for which a tensor is moved to another device."""
CPU = torch.device("cpu")

# --------------------------------------------------------------------------------- tensors in files


def chunks(
    output: Output, *, chunk_bytes: int = CHUNK_BYTES, device: torch.device = CPU
) -> Iterator[memoryview]:
    """Yield the bytes of an output that is combined, in chunks, each valid until the next one.

    Reading starts with the first chunk. Memory is bounded by a few chunks for each source. Neither
    `chunk_bytes` nor the `device` that large tensors are merged on changes a bit of the result.
    Only the thread that takes the chunks computes; several threads can produce several outputs at
    once.
    """
    spec, make = output.spec, output.make
    if not isinstance(make, Combine):
        raise TypeError(f"'{spec.name}' is copied or fitted, not combined")
    if spec.elements < _DEVICE_LEAST:
        device = CPU
    step = max(1, chunk_bytes // 4) if device.type == "cpu" else _DEVICE_CHUNK_BYTES // 4
    for tensor in make.tensors:
        _check_input(tensor, spec)
    with ExitStack() as stack:
        readers = [_file_reader(tensor, stack, device, step) for tensor in make.tensors]
        stack.enter_context(use_one_thread())
        for chunk in combined(make, spec, readers, step):
            yield chunk.cpu().view(torch.uint8).numpy().data


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


def _file_reader(tensor: TensorInfo, files: ExitStack, device: torch.device, step: int) -> Reader:
    """Return a reader of a tensor on disk that fills one buffer, or of a combined tensor.

    A tensor whose values don't lie in a row is loaded whole while it is read.
    """
    if isinstance(tensor.form, Combine):
        for inner in tensor.form.tensors:
            _check_input(inner, tensor.spec)
        readers = [_file_reader(inner, files, device, step) for inner in tensor.form.tensors]
        return nested_reader(tensor.form, tensor.spec, readers, step)
    if isinstance(tensor.form, Quantised):
        return _rows_reader(rows_of(tensor, tensor.form, load_tensor), tensor.spec, device)
    if tensor.form is not None:
        return memory_reader(load_tensor(tensor), device)
    file = files.enter_context(open_regular(tensor.file)).fileno()
    dtype, width = FLOAT_DTYPES[tensor.spec.dtype], DTYPE_BITS[tensor.spec.dtype] // 8
    buffer = torch.empty(0, dtype=torch.uint8)
    foresee(file, tensor.offset, tensor.spec.size)

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


# ----------------------------------------------------------------------- devices, threads, sketches


def device_of(name: str) -> torch.device:
    """Return the device of that name. Raises TailorError if there is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TailorError(f"'{name}' is not a device") from error
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        raise TailorError(f"'{name}': merges run on 'cpu' or on 'cuda'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        available = f"there are {count}" if count else "there is no CUDA device"
        raise TailorError(f"'{name}' was asked for, and {available}")
    return device


_LOCK = Lock()
_at_work: list[int] = []  # torch's threads before the first of those that are at work


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Have torch use the caller's thread alone, also for large tensors.

    Its number of threads belongs to the process; it is as before once all that are within left.
    """
    with _LOCK:
        _at_work.append(torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            before = _at_work[0]
            _at_work.pop()
            if not _at_work:
                torch.set_num_threads(before)


_BUCKETS = 64
"""Numbers of a sketch: the distance between two has an error of some 18 %."""
_SUMMED = 2**20
"""Entries that are summed at once; a multiple of `_BUCKETS`."""


def sketch(tensor: Shaped[Tensor, "..."]) -> tuple[float, ...]:
    """Return sums of a tensor's entries, each with a sign that depends on its number alone.

    A few float64 numbers show the distance of two tensors whose bytes may differ: the Euclidean
    distance of two sketches is about that of the tensors (a count sketch, Charikar and others
    2002). The entry of number i is in the sum i modulo `_BUCKETS`.
    """
    flat = tensor.detach().reshape(-1).cpu()
    key = draw_key(0, "sketch", "")
    sums = torch.zeros(_BUCKETS, dtype=torch.float64)
    for start in range(0, len(flat), _SUMMED):
        part = flat[start : start + _SUMMED].double()
        signs = kept_entries(key, start, len(part), 0.5, part.device)
        signed = torch.where(signs, part, -part)
        signed = torch.nn.functional.pad(signed, (0, -len(signed) % _BUCKETS))
        sums += signed.reshape(-1, _BUCKETS).sum(0)
    return tuple(float(number) for number in sums)
