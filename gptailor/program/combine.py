"""Tensors in, one rounded tensor out, chunk by chunk: `combined`; in memory: `combine_tensors`.

Inputs are widened (or, float64, rounded) to float32, a kernel combines them, the result is divided
and rounded once, to nearest even.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import final

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from gptailor.diagnostics import Fault, PlanError, TailorError
from gptailor.program.kernels import KERNELS
from gptailor.program.measure import Chunk, Inputs
from gptailor.program.program import Arguments
from gptailor.registry import METHODS

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
