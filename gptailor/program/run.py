"""A `Program` carried out: the bytes of each output, in order, within bounded memory.

Nothing is kept between outputs, so that several may be made at the same time.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gptailor.checkpoint.header import DTYPE_BITS, ByteRange, TensorInfo, TensorSpec
from gptailor.checkpoint.regular import open_regular
from gptailor.diagnostics import TailorError
from gptailor.program.combine import FLOAT_DTYPES, CombineTarget, chunk_of, combined, single
from gptailor.program.measure import Chunk, Inputs
from gptailor.program.program import Combine, Copy, Output, Program
from gptailor.program.raw import foresee, read_into

CHUNK_BYTES = 2**19
"""Bytes of one input's chunk in float32: smaller ones make threads wait for one another."""
DEVICE_CHUNK_BYTES = 2**26
"""The same on another device, whose calls take longer to begin."""
DEVICE_LEAST = 2**20
"""Entries from which on a tensor is worth the way to another device."""

CPU = torch.device("cpu")

TensorBytes = ByteRange | Iterator[memoryview]
"""An output's bytes: a stretch of a file as it is, or chunks, each valid until the next is made."""


def run_program(
    program: Program, *, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[Output, TensorBytes]]:
    """Each output of the program, in file order, with its bytes."""
    for output in program.outputs:
        yield output, payload(output, chunk_bytes=chunk_bytes)


def payload(
    output: Output, *, chunk_bytes: int = CHUNK_BYTES, device: torch.device = CPU
) -> TensorBytes:
    """The bytes of one output: those of a file, or its `chunks`."""
    if isinstance(output.make, Copy):
        source = output.make.source
        return ByteRange(source.file, source.offset, source.spec.size)
    return chunks(output, chunk_bytes=chunk_bytes, device=device)


def chunks(
    output: Output, *, chunk_bytes: int = CHUNK_BYTES, device: torch.device = CPU
) -> Iterator[memoryview]:
    """The bytes of an output that is combined; nothing is read before the first is asked for.

    Memory is bounded by a few chunks for each source; neither `chunk_bytes` nor the `device` that
    large tensors are merged on changes a bit of the result. Arithmetic is done by the thread that
    asks for the chunks alone: several outputs are made at once by asking from several threads.
    """
    make = output.make
    if not isinstance(make, Combine):
        raise TypeError(f"'{output.spec.name}' is copied or fitted, not combined")
    if device.type == "cpu" or output.spec.elements < DEVICE_LEAST:
        return _chunks(output.spec, make, max(1, chunk_bytes // 4), CPU)
    return _chunks(output.spec, make, DEVICE_CHUNK_BYTES // 4, device)


def device_of(name: str) -> torch.device:
    """The device of that name. Raises TailorError if there is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TailorError(f"'{name}' is no device") from error
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        raise TailorError(f"'{name}': merges run on 'cpu' or on 'cuda'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        there = f"there are {count}" if count else "there is no CUDA device"
        raise TailorError(f"'{name}' was asked for, and {there}")
    return device


def _chunks(
    spec: TensorSpec, make: Combine, step: int, device: torch.device
) -> Iterator[memoryview]:
    tensors = [*make.base, *make.sources]
    _check_inputs(spec, tensors)
    with ExitStack() as stack:
        readers = [_reader(tensor, stack, device) for tensor in tensors]

        def read(start: int, end: int) -> Chunk:
            vectors = [reader.read(start, end).to(device) for reader in readers]
            singles = [
                single(vector, tensor.spec.name, tensor.spec.shape, start)
                for vector, tensor in zip(vectors, tensors, strict=True)
            ]
            return chunk_of(start, singles, with_base=bool(make.base))

        inputs = Inputs(spec.elements, make.models, make.place, step, read)
        target = CombineTarget(
            spec.name, spec.shape, FLOAT_DTYPES[spec.dtype], make.divisor, make.offset
        )
        stack.enter_context(use_one_thread())
        for chunk in combined(make.method, make.arguments, inputs, target):
            yield chunk.cpu().view(torch.uint8).numpy().data


def _check_inputs(spec: TensorSpec, tensors: Sequence[TensorInfo]) -> None:
    for tensor in tensors:
        if tensor.spec.dtype not in FLOAT_DTYPES:
            raise TailorError(
                f"'{tensor.spec.name}' in '{tensor.file}' is {tensor.spec.dtype}, "
                f"which can't be merged into '{spec.name}'"
            )
        if tensor.spec.shape != spec.shape:
            raise TailorError(
                f"'{tensor.spec.name}' in '{tensor.file}' has the shape "
                f"{list(tensor.spec.shape)}, but '{spec.name}' {list(spec.shape)}"
            )


def _reader(tensor: TensorInfo, files: ExitStack, device: torch.device) -> "_Reader | _Loaded":
    return _Reader(tensor, files, device) if tensor.form is None else _Loaded(tensor)


@final
class _Loaded:
    """A tensor whose values don't lie in a row: loaded whole, for as long as it is read."""

    def __init__(self, tensor: TensorInfo) -> None:
        from gptailor.program.loading import load_tensor  # noqa: PLC0415 (foreign formats' libraries)

        self.values = load_tensor(tensor).reshape(-1)

    def read(self, start: int, end: int) -> Float[Tensor, " n"]:
        """The entries from `start` to `end`."""
        return self.values[start:end]


@final
class _Reader:
    """A tensor on disk, read stretch by stretch into one buffer."""

    def __init__(self, tensor: TensorInfo, files: ExitStack, device: torch.device) -> None:
        self.tensor = tensor
        self.file = files.enter_context(open_regular(tensor.file)).fileno()
        self.width = DTYPE_BITS[tensor.spec.dtype] // 8
        self.pinned = device.type == "cuda"
        self.buffer: UInt8[Tensor, " bytes"] = torch.empty(0, dtype=torch.uint8)
        foresee(self.file, tensor.offset, tensor.spec.size)

    def read(self, start: int, end: int) -> Float[Tensor, " n"]:
        """The entries from `start` to `end`, valid until the next call."""
        size = (end - start) * self.width
        if len(self.buffer) < size:
            self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
        stretch = self.buffer[:size]
        offset = self.tensor.offset + start * self.width
        read_into(stretch.numpy().data, self.file, offset, self.tensor.file)
        return stretch.view(FLOAT_DTYPES[self.tensor.spec.dtype])


# ----------------------------------------------------------------------------------------- threads

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
