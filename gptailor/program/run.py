"""Tensors in, one rounded tensor out, chunk by chunk: `combined`; in memory: `combine_tensors`.

Inputs are widened (or, float64, rounded) to float32, a kernel combines them, the result is divided
and rounded once, to nearest even.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import final

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.tensor import DTYPE_BITS, ByteRange, TensorInfo, TensorSpec
from gptailor.methods import KERNELS
from gptailor.methods.arithmetic import Chunk, Inputs
from gptailor.plan.faults import Fault, PlanError, TailorError
from gptailor.plan.registry import METHODS
from gptailor.program.load import foresee, read_into
from gptailor.program.program import Arguments, Combine, Copy, Output, Program

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that are merged, by their names in safetensors."""

LIVE_STEP = 2**22
"""Entries of live tensors that are combined at once."""


@final
class OverflowFault(PlanError):  # noqa: N818 (the language speaks of it as a fault)
    """A finite tensor's merge has a value that its dtype can't hold; the first one is named."""

    def __init__(
        self, tensor: str, index: tuple[int, ...], value: float, dtype: torch.dtype
    ) -> None:
        self.tensor = tensor
        self.index = index
        self.value = value
        self.dtype = dtype
        name = str(dtype).removeprefix("torch.")
        at = f"[{', '.join(map(str, index))}]" if index else ""
        message = f"'{tensor}'{at} is {value:.9g}, but {name} ends at {torch.finfo(dtype).max:.9g}"
        super().__init__([Fault("M401", message, help="choose a dtype that reaches further")])


@final
@dataclass(frozen=True, slots=True)
class CombineTarget:
    """What is made: a name for messages, a shape, a dtype; and what is done with the result.

    It is divided by `divisor`, then `offset` is added, both in float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    divisor: float = 1.0
    offset: float = 0.0


def combined(
    method: str, arguments: Arguments, inputs: Inputs, target: CombineTarget
) -> Iterator[Float[Tensor, " n"]]:
    """The target's entries in order, in chunks, each valid until the next one is made."""
    kernel, given = KERNELS[method], dict(arguments)
    if not inputs.elements:
        return
    measured = kernel.measure(inputs, given)
    for chunk in inputs.chunks():
        yield _rounded(kernel.combine(chunk, given, measured), chunk, target)


def combine_tensors(  # noqa: PLR0913 (a merge has these eight sides)
    method: str,
    arguments: Arguments,
    base: Tensor | None,
    sources: Sequence[Tensor],
    models: Sequence[str],
    place: str,
    *,
    divisor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The merge of tensors in memory, of any shape and on any one device.

    The same numbers as the streamed path's, bit for bit. `base` is θ_b, None for a method without;
    `place` is its tensor's name. Without a `dtype` the result has the base's, else the first
    source's.
    """
    _check_arity(method, base, sources, models)
    tensors = [*sources] if base is None else [base, *sources]
    first, shapes = tensors[0], [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"'{place}': the shapes {', '.join(map(str, shapes))} differ")
    flat = [floating(tensor, place).detach().reshape(-1) for tensor in tensors]

    def read(start: int, end: int) -> Chunk:
        vectors = [single(t[start:end], place, shapes[0], start) for t in flat]
        return chunk_of(start, vectors, with_base=base is not None)

    inputs = Inputs(first.numel(), tuple(models), place, LIVE_STEP, read)
    target = CombineTarget(place, shapes[0], dtype or first.dtype, divisor)
    out = torch.empty(first.numel(), dtype=target.dtype, device=first.device)
    offset = 0
    for part in combined(method, arguments, inputs, target):
        out[offset : offset + len(part)] = part
        offset += len(part)
    return out.view(target.shape)


def _check_arity(
    method: str, base: Tensor | None, sources: Sequence[Tensor], models: Sequence[str]
) -> None:
    wanted = METHODS[method]
    if len(models) != len(sources):
        raise ValueError(f"{len(sources)} sources have {len(models)} models' names")
    if len(sources) < wanted.least or (wanted.most is not None and len(sources) > wanted.most):
        raise ValueError(f"'{method}' can't merge {len(sources)} sources")
    if wanted.needs_base and base is None:
        raise ValueError(f"'{method}' needs the base's tensor")


def chunk_of(offset: int, vectors: Sequence[Float32[Tensor, " n"]], *, with_base: bool) -> Chunk:
    """The chunk of these vectors, the first being θ_b's if it has one."""
    if with_base:
        return Chunk(offset, vectors[0], tuple(vectors[1:]))
    return Chunk(offset, None, tuple(vectors))


def floating(tensor: Tensor, name: str) -> Tensor:
    """The same tensor, of a dtype that can be merged."""
    if tensor.dtype not in FLOAT_DTYPES.values():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise TailorError(f"'{name}' is {kind}, which can't be merged")
    return tensor


def single(
    values: Float[Tensor, " n"], name: str, shape: tuple[int, ...], offset: int
) -> Float32[Tensor, " n"]:
    """The values in float32; a finite one beyond it is refused."""
    result = values.to(torch.float32)
    if values.dtype == torch.float64:
        _check_finite(result, values, [values], CombineTarget(name, shape, torch.float32), offset)
    return result


def _rounded(
    value: Float32[Tensor, " n"], chunk: Chunk, target: CombineTarget
) -> Float[Tensor, " n"]:
    if target.divisor != 1.0:
        value = value / torch.full((1,), target.divisor, dtype=torch.float32, device=value.device)
    if target.offset != 0.0:
        value = value + torch.full((1,), target.offset, dtype=torch.float32, device=value.device)
    result = value.to(target.dtype)
    sources = chunk.sources if chunk.base is None else (chunk.base, *chunk.sources)
    _check_finite(result, value, sources, target, chunk.offset)
    return result


def _check_finite(
    result: Tensor, value: Tensor, sources: Sequence[Tensor], target: CombineTarget, offset: int
) -> None:
    """Refuse a result that is infinity or NaN where all that it was made of is finite."""
    least, most = torch.aminmax(value)
    limit = torch.finfo(result.dtype).max
    if -limit <= float(least) and float(most) <= limit:  # NaN is neither
        return
    wrong = ~torch.isfinite(result)
    if not wrong.any():
        return
    for source in sources:
        wrong &= torch.isfinite(source)
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        index = _index(offset + first, target.shape)
        raise OverflowFault(target.name, index, float(value[first]), target.dtype)


def _index(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where in a tensor of this shape its entry of that number stands."""
    return tuple(number // prod(shape[axis + 1 :]) % extent for axis, extent in enumerate(shape))


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
        from gptailor.program.load import load_tensor  # noqa: PLC0415 (foreign formats' libraries)

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
