"""The one combine loop: `combined`, read → chunk → combined, tensors in and one tensor out.

Readers give stretches of the inputs, of files to `chunks`, as compile has it, or of tensors in
memory to `combine_tensors`, as a stitch and a bridge have it: the bits are the same, since
everything after the reading is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from threading import Lock
from typing import final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from gptailor.checkpoint.files import open_regular
from gptailor.checkpoint.tensor import DTYPE_BITS, FLOATS, Quantised, TensorInfo, TensorSpec
from gptailor.methods import KERNELS
from gptailor.methods.arithmetic import Chunk, Inputs, draw_key, kept_entries, number_beside
from gptailor.plan.faults import Fault, PlanError, TailorError
from gptailor.plan.registry import METHODS
from gptailor.program.dequantise import ReadRows, rows_of
from gptailor.program.load import TORCH_DTYPES, foresee, load_tensor, read_into
from gptailor.program.program import Combine, Output

FLOAT_DTYPES: dict[str, torch.dtype] = {name: TORCH_DTYPES[name] for name in FLOATS}
"""The dtypes that are merged, by their names in safetensors."""

CHUNK_BYTES = 2**19
"""Bytes of one input's chunk in float32: smaller ones make threads wait for one another."""
_DEVICE_CHUNK_BYTES = 2**26
"""The same on another device, whose calls take longer to begin."""
_DEVICE_LEAST = 2**20
"""Entries from which on a tensor is worth the way to another device."""
_MEMORY_STEP = 2**22
"""Entries of tensors in memory that are combined at once."""

CPU = torch.device("cpu")

Reader = Callable[[int, int], Float[Tensor, " n"]]
"""Gives the entries of one tensor from a number to another, valid until the next are asked for."""


@final
class OverflowFault(PlanError):  # noqa: N818 (the language speaks of it as a fault)
    """A finite tensor's merge has a value that its dtype can't hold; the first one is named."""

    def __init__(
        self, tensor: str, index: tuple[int, ...], value: float, dtype: torch.dtype
    ) -> None:
        self.tensor, self.index, self.value, self.dtype = tensor, index, value, dtype
        name = str(dtype).removeprefix("torch.")
        at = f"[{', '.join(map(str, index))}]" if index else ""
        message = f"'{tensor}'{at} is {value:.9g}, but {name} ends at {torch.finfo(dtype).max:.9g}"
        super().__init__([Fault("M401", message, help="choose a dtype that reaches further")])


# -------------------------------------------------------------------------------- the combine loop


def combined(
    make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int
) -> Iterator[Float[Tensor, " n"]]:
    """The entries of a merged tensor in order, in chunks, each valid until the next one is made.

    `readers` are those of `make.tensors`; `step` is how many entries they are asked for at once,
    which changes no bit. Inputs are widened (or, float64, rounded) to float32, the method combines
    them, the result is divided, the offset is added, and it is rounded once, to nearest even.
    Raises OverflowFault.
    """
    _check_arity(make)
    if not spec.elements:
        return
    kernel, given = KERNELS[make.method], dict(make.arguments)

    def read(start: int, end: int) -> Chunk:
        vectors = [
            _single(reader(start, end), info.spec, start)
            for reader, info in zip(readers, make.tensors, strict=True)
        ]
        base = vectors.pop(0) if make.base else None
        return Chunk(start, base, tuple(vectors))

    inputs = Inputs(spec.elements, make.models, make.place, step, read)
    measured = kernel.measure(inputs, given)
    for chunk in inputs.chunks():
        yield _rounded(kernel.combine(chunk, given, measured), chunk, make, spec)


def _check_arity(make: Combine) -> None:
    wanted, count = METHODS[make.method], len(make.sources)
    if len(make.models) != count:
        raise ValueError(f"{count} sources have {len(make.models)} models' names")
    if count < wanted.least or (wanted.most is not None and count > wanted.most):
        raise ValueError(f"'{make.method}' can't merge {count} sources")
    if wanted.needs_base and not make.base:
        raise ValueError(f"'{make.method}' needs the base's tensor")


def _single(values: Float[Tensor, " n"], spec: TensorSpec, offset: int) -> Float32[Tensor, " n"]:
    """The values in float32; a finite one beyond it is refused."""
    result = values.to(torch.float32)
    if values.dtype == torch.float64:
        _check_finite(result, values, [values], spec, offset)
    return result


def _rounded(
    value: Float32[Tensor, " n"], chunk: Chunk, make: Combine, spec: TensorSpec
) -> Float[Tensor, " n"]:
    if make.divisor != 1.0:
        value = value / number_beside(value, make.divisor)
    if make.offset != 0.0:
        value = value + number_beside(value, make.offset)
    result = value.to(FLOAT_DTYPES[spec.dtype])
    sources = chunk.sources if chunk.base is None else (chunk.base, *chunk.sources)
    _check_finite(result, value, sources, spec, chunk.offset)
    return result


def _check_finite(
    result: Tensor, value: Tensor, sources: Sequence[Tensor], spec: TensorSpec, offset: int
) -> None:
    """Refuse a result that is infinity or NaN where all that it was made of is finite."""
    least, most = torch.aminmax(value)
    limit = torch.finfo(result.dtype).max
    if -limit <= float(least) and float(most) <= limit:  # NaN is neither
        return
    wrong = ~torch.isfinite(result)
    for source in sources:
        wrong &= torch.isfinite(source)
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        extents = enumerate(spec.shape)
        index = tuple((offset + first) // prod(spec.shape[i + 1 :]) % n for i, n in extents)
        raise OverflowFault(spec.name, index, float(value[first]), result.dtype)


# --------------------------------------------------------------------------------- tensors in files


def chunks(
    output: Output, *, chunk_bytes: int = CHUNK_BYTES, device: torch.device = CPU
) -> Iterator[memoryview]:
    """The bytes of an output that is combined, in chunks, each valid until the next one is made.

    Nothing is read before the first is asked for. Memory is bounded by a few chunks for each
    source; neither `chunk_bytes` nor the `device` that large tensors are merged on changes a bit of
    the result. Arithmetic is done by the thread that asks for the chunks alone: several outputs are
    made at once by asking from several threads.
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
        readers = [_file_reader(tensor, stack, device) for tensor in make.tensors]
        stack.enter_context(use_one_thread())
        for chunk in combined(make, spec, readers, step):
            yield chunk.cpu().view(torch.uint8).numpy().data


def _check_input(tensor: TensorInfo, wanted: TensorSpec) -> None:
    spec = tensor.spec
    if spec.dtype not in FLOATS:
        raise TailorError(
            f"'{spec.name}' in '{tensor.file}' is {spec.dtype}, "
            f"which can't be merged into '{wanted.name}'"
        )
    if spec.shape != wanted.shape:
        raise TailorError(
            f"'{spec.name}' in '{tensor.file}' has the shape {list(spec.shape)}, "
            f"but '{wanted.name}' {list(wanted.shape)}"
        )


def _file_reader(tensor: TensorInfo, files: ExitStack, device: torch.device) -> Reader:
    """A tensor on disk, read stretch by stretch into one buffer.

    One whose values don't lie in a row is loaded whole, for as long as it is read.
    """
    if isinstance(tensor.form, Quantised):
        return _rows_reader(rows_of(tensor, tensor.form, load_tensor), tensor.spec, device)
    if tensor.form is not None:
        return _memory_reader(load_tensor(tensor), device)
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
    """A quantised tensor, some rows at a time; the last ones stay until others are asked for."""
    width = prod(spec.shape[1:])
    kept, rows = range(0), torch.empty(0)

    def read(start: int, end: int) -> Float[Tensor, " n"]:
        nonlocal kept, rows
        wanted = range(start // width, -(-end // width))
        if not (kept.start <= wanted.start and wanted.stop <= kept.stop):
            kept, rows = wanted, read_rows(wanted.start, wanted.stop).reshape(-1)
        before = kept.start * width
        return rows[start - before : end - before].to(device)

    return read


# -------------------------------------------------------------------------------- tensors in memory


def combine_tensors(
    make: Combine, spec: TensorSpec, tensors: Sequence[Shaped[Tensor, "..."]]
) -> Float[Tensor, "..."]:
    """A merged tensor of tensors in memory on one device, `make.tensors`; `chunks`' bytes, exactly.

    Raises OverflowFault, and TailorError for whole numbers.
    """
    for tensor, info in zip(tensors, make.tensors, strict=True):
        if tensor.dtype not in FLOAT_DTYPES.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise TailorError(f"'{info.spec.name}' is {kind}, which can't be merged")
        if tensor.shape != spec.shape:
            raise ValueError(f"'{spec.name}': {[*tensor.shape]} and {[*spec.shape]} differ")
    device = tensors[0].device
    readers = [_memory_reader(tensor, device) for tensor in tensors]
    out = torch.empty(spec.elements, dtype=FLOAT_DTYPES[spec.dtype], device=device)
    offset = 0
    for part in combined(make, spec, readers, _MEMORY_STEP):
        out[offset : offset + len(part)] = part
        offset += len(part)
    return out.view(spec.shape)


def _memory_reader(tensor: Shaped[Tensor, "..."], device: torch.device) -> Reader:
    flat = tensor.detach().reshape(-1)
    return lambda start, end: flat[start:end].to(device)


# ----------------------------------------------------------------------- devices, threads, sketches


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
    """Sums of a tensor's entries, each with a sign that depends on its number alone, in float64.

    A few numbers that tell how far two tensors are apart, for where their bytes may differ: the
    Euclidean distance of two sketches is about that of the tensors (a count sketch, Charikar and
    others 2002). The entry of number i is in the sum i modulo `_BUCKETS`.
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
