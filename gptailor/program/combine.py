"""The one combine loop, `combined`: readers of tensors in, the entries of one tensor out.

It doesn't ask where its readers read: a tensor that is itself combined, as those of models made of
models are, is read by `nested_reader`, and no more of it is made than is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from gptailor.checkpoint.tensor import TensorSpec
from gptailor.methods import KERNELS
from gptailor.methods.arithmetic import Chunk, Inputs, Measured, number_beside
from gptailor.plan.faults import Fault, PlanError, TailorError
from gptailor.plan.registry import METHODS
from gptailor.program.program import Combine

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
"""The dtypes that are merged, by their names in safetensors."""

_MEMORY_STEP = 2**22
"""Entries of tensors in memory that are combined at once."""

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
    inputs = _inputs(make, spec, readers, step)
    measured = kernel.measure(inputs, given)
    for chunk in inputs.chunks(kernel.unit(inputs, given)):
        yield _rounded(kernel.combine(chunk, given, measured), chunk, make, spec)


def nested_reader(make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int) -> Reader:
    """Reads a tensor that is itself combined, in float32: what is asked for is made then.

    What its method measures of whole tensors is measured once, before the first entries are made.
    """
    _check_arity(make)
    single = replace(spec, dtype="F32")
    kernel, given = KERNELS[make.method], dict(make.arguments)
    inputs = _inputs(make, single, readers, step)
    measured: list[Measured] = []

    def read(start: int, end: int) -> Float32[Tensor, " n"]:
        if not measured:
            measured.append(kernel.measure(inputs, given))
        unit = kernel.unit(inputs, given)
        first, last = start // unit * unit, min(-(-end // unit) * unit, spec.elements)
        chunk = inputs.read(first, last)
        made = _rounded(kernel.combine(chunk, given, measured[0]), chunk, make, single)
        return made[start - first : end - first]

    return read


def _inputs(make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int) -> Inputs:
    def read(start: int, end: int) -> Chunk:
        vectors = [
            _single(reader(start, end), info.spec, start)
            for reader, info in zip(readers, make.tensors, strict=True)
        ]
        base = vectors.pop(0) if make.base else None
        return Chunk(start, base, tuple(vectors))

    return Inputs(spec.elements, make.models, make.place, step, read, spec.shape)


def _check_arity(make: Combine) -> None:
    wanted, count = METHODS[make.method], len(make.sources)
    if len(make.models) != count:
        raise ValueError(f"{count} sources have {len(make.models)} models' names")
    if count < wanted.least or (wanted.most is not None and count > wanted.most):
        raise ValueError(f"'{make.method}' can't merge {count} sources")
    if wanted.takes_base(dict(make.arguments)) and not make.base:
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
    readers = [memory_reader(tensor, device) for tensor in tensors]
    out = torch.empty(spec.elements, dtype=FLOAT_DTYPES[spec.dtype], device=device)
    offset = 0
    for part in combined(make, spec, readers, _MEMORY_STEP):
        out[offset : offset + len(part)] = part
        offset += len(part)
    return out.view(spec.shape)


def memory_reader(tensor: Shaped[Tensor, "..."], device: torch.device) -> Reader:
    """A tensor in memory, brought to the device stretch by stretch."""
    flat = tensor.detach().reshape(-1)
    return lambda start, end: flat[start:end].to(device)
