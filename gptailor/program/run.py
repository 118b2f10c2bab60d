"""A `Program` carried out: the bytes of each output, in order, within bounded memory.

Nothing is kept between outputs, so that several may be made at the same time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import assert_never, final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from gptailor.checkpoint.header import DTYPE_BITS, ByteRange, TensorInfo, TensorSpec
from gptailor.checkpoint.regular import open_regular
from gptailor.diagnostics import TailorError
from gptailor.program.combine import FLOATS, Target, chunk_of, combined, single
from gptailor.program.measure import Chunk, Inputs
from gptailor.program.program import Combine, Copy, Output, Program
from gptailor.program.raw import fill

CHUNK_BYTES = 2**20
"""Bytes of one input's chunk in float32; those of all inputs and results should fit a cache."""

Payload = ByteRange | Iterator[memoryview]
"""An output's bytes: a stretch of a file as it is, or chunks, each valid until the next is made."""


def run(program: Program, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[Output, Payload]]:
    """Each output of the program, in file order, with its bytes."""
    for output in program.outputs:
        yield output, payload(output, chunk_bytes=chunk_bytes)


def payloads(
    program: Program, *, chunk_bytes: int = CHUNK_BYTES
) -> Callable[[TensorSpec], Payload]:
    """A function from an output's spec to its bytes, as the writer asks for them."""
    outputs = {output.spec: output for output in program.outputs}
    return lambda spec: payload(outputs[spec], chunk_bytes=chunk_bytes)


def payload(output: Output, *, chunk_bytes: int = CHUNK_BYTES) -> Payload:
    """The bytes of one output; nothing is read before the first chunk is asked for.

    Memory is bounded by a few chunks for each source; `chunk_bytes` changes no bit of the result.
    """
    match output.make:
        case Copy(source):
            return ByteRange(source.file, source.offset, source.spec.size)
        case Combine() as make:
            return _chunks(output.spec, make, max(1, chunk_bytes // 4))
        case _:
            assert_never(output.make)


def _chunks(spec: TensorSpec, make: Combine, step: int) -> Iterator[memoryview]:
    tensors = [*make.base, *make.sources]
    _check_inputs(spec, tensors)
    with ExitStack() as files:
        readers = [_reader(tensor, files) for tensor in tensors]

        def read(start: int, end: int) -> Chunk:
            vectors = [reader.read(start, end) for reader in readers]
            return chunk_of(start, vectors, with_base=bool(make.base))

        inputs = Inputs(spec.elements, make.models, make.place, step, read)
        target = Target(spec.name, spec.shape, FLOATS[spec.dtype], make.divisor, make.offset)
        for chunk in combined(make.method, make.arguments, inputs, target):
            yield chunk.view(torch.uint8).numpy().data


def _check_inputs(spec: TensorSpec, tensors: Sequence[TensorInfo]) -> None:
    for tensor in tensors:
        if tensor.spec.dtype not in FLOATS:
            raise TailorError(
                f"'{tensor.spec.name}' in '{tensor.file}' is {tensor.spec.dtype}, "
                f"which can't be merged into '{spec.name}'"
            )
        if tensor.spec.shape != spec.shape:
            raise TailorError(
                f"'{tensor.spec.name}' in '{tensor.file}' has the shape "
                f"{list(tensor.spec.shape)}, but '{spec.name}' {list(spec.shape)}"
            )


def _reader(tensor: TensorInfo, files: ExitStack) -> "_Reader | _Loaded":
    return _Reader(tensor, files) if tensor.form is None else _Loaded(tensor)


@final
class _Loaded:
    """A tensor whose values don't lie in a row: loaded whole, for as long as it is read."""

    def __init__(self, tensor: TensorInfo) -> None:
        from gptailor.program.loading import load  # noqa: PLC0415 (foreign formats' libraries)

        self.spec = tensor.spec
        self.values = load(tensor).reshape(-1)

    def read(self, start: int, end: int) -> Float32[Tensor, " n"]:
        """The entries from `start` to `end` in float32."""
        return single(self.values[start:end], self.spec.name, self.spec.shape, start)


@final
class _Reader:
    """A tensor on disk, read stretch by stretch into one buffer."""

    def __init__(self, tensor: TensorInfo, files: ExitStack) -> None:
        self.tensor = tensor
        self.file = files.enter_context(open_regular(tensor.file)).fileno()
        self.width = DTYPE_BITS[tensor.spec.dtype] // 8
        self.buffer = bytearray()

    def read(self, start: int, end: int) -> Float32[Tensor, " n"]:
        """The entries from `start` to `end` in float32, valid until the next call."""
        spec = self.tensor.spec
        size = (end - start) * self.width
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        offset = self.tensor.offset + start * self.width
        fill(memoryview(self.buffer)[:size], self.file, offset, self.tensor.file)
        values: Float[Tensor, " n"] = torch.frombuffer(
            self.buffer, dtype=FLOATS[spec.dtype], count=end - start
        )
        return single(values, spec.name, spec.shape, start)
