"""The one combine loop, `combined`: readers of tensors in, the entries of one tensor out.

It is independent of the readers' sources. A tensor that is itself combined, as in models made of
models, is read by `nested_reader`, which computes no more than the requested entries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from math import isfinite
from typing import NoReturn

import numpy as np

from gptailor.checkpoint.files import shown
from gptailor.checkpoint.tensor import Dequantised, Quantised, TensorInfo, TensorSpec
from gptailor.methods import kernel_of
from gptailor.methods.arithmetic import Chunk, Inputs, Measured, Stored, number_beside
from gptailor.methods.arrays import Array, namespace, widened
from gptailor.methods.rounding import (
    LARGEST_OF,
    LONGER_DTYPE,
    CoefficientError,
    NotFiniteFault,
    OverflowFault,
    index_of,
    rounded,
)
from gptailor.methods.shapes import Float32, Shaped
from gptailor.program.program import Combine

Reader = Callable[[int, int], Shaped[Array, " n"]]
"""Returns the entries of one tensor from a number to another, valid until the next call.

An array of NumPy's has float16, float32, float64, or uint16: the bits of bfloat16.
"""


# -------------------------------------------------------------------------------- the combine loop


def combined(
    make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int
) -> Iterator[Shaped[Array, " n"]]:
    """Yield the entries of a merged tensor in order, in chunks, each valid until the next one.

    `readers` are for `make.tensors`. Each call asks for `step` entries, which changes no bit.
    Inputs are widened (or, float64, rounded) to float32, the method combines them, the result is
    divided, the offset is added, and it is rounded once, to nearest even. Raises OverflowFault and
    NotFiniteFault for a result that isn't finite.
    """
    if not spec.elements:
        return
    kernel, arguments = kernel_of(make.method), dict(make.arguments)
    inputs = _inputs(make, spec, readers, step)
    measured = _measured(make, inputs)
    for chunk in inputs.chunks(kernel.unit(inputs, arguments)):
        yield _result(chunk, measured, make, spec)


def nested_reader(make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int) -> Reader:
    """Return a reader of a tensor that is itself combined, in float32, entry by entry on request.

    The method measures whole tensors once, before the first entries are computed.
    """
    single = replace(spec, dtype="F32")
    kernel, arguments = kernel_of(make.method), dict(make.arguments)
    inputs = _inputs(make, single, readers, step)
    measured = cache(partial(_measured, make, inputs))

    def read(start: int, end: int) -> Float32[Array, " n"]:
        known = measured()  # before the chunk: it reads into the chunk's buffer
        unit = kernel.unit(inputs, arguments)
        first, last = start // unit * unit, min(-(-end // unit) * unit, spec.elements)
        chunk = inputs.read(first, last)
        return _result(chunk, known, make, single)[start - first : end - first]

    return read


_quietly = np.errstate(all="ignore")
"""Without NumPy's warnings of infinity and NaN, which are refused."""


@_quietly
def _measured(make: Combine, inputs: Inputs) -> Measured:
    """Return the numbers that the method measures of whole tensors."""
    return kernel_of(make.method).measure(inputs, dict(make.arguments))


def _inputs(make: Combine, spec: TensorSpec, readers: Sequence[Reader], step: int) -> Inputs:
    def read(start: int, end: int) -> Chunk:
        vectors = [
            _single(reader(start, end), info.spec, start)
            for reader, info in zip(readers, make.tensors, strict=True)
        ]
        base = vectors.pop(0) if make.base else None
        return Chunk(start, base, tuple(vectors))

    return Inputs(spec.elements, make.models, make.place, step, read, spec.shape)


@_quietly
def _single(values: Shaped[Array, " n"], spec: TensorSpec, offset: int) -> Stored:
    """Return the values in float32, or NumPy's as they are in bfloat16; refuse values beyond it."""
    if isinstance(values, np.ndarray) and values.dtype == np.uint16:
        return values
    if values.dtype != namespace(values).float64:
        return widened(values)

    def refuse(number: int) -> None:
        if isfinite(value := float(values[number])):
            index = index_of(offset + number, spec.shape)
            raise OverflowFault(spec.name, index, value, "F32", help=_IN_FLOAT32)

    return rounded(values, "F32", refuse)


_IN_FLOAT32 = "correct the number in the model; gptailor computes in float32"


@_quietly
def _result(
    chunk: Chunk, measured: Measured, make: Combine, spec: TensorSpec
) -> Shaped[Array, " n"]:
    """Return a chunk of the result, all of it finite."""
    try:
        value = kernel_of(make.method).combine(chunk, dict(make.arguments), measured)
        if make.divisor != 1.0:
            value = value / number_beside(value, make.divisor)
        if make.offset != 0.0:
            value = value + number_beside(value, make.offset)
    except CoefficientError as error:
        by, help_ = f"a coefficient of {_recipe(make)}", _smaller(make)
        raise OverflowFault(spec.name, (), error.number, "F32", by, help_) from error

    def refuse(number: int) -> None:
        _refuse(float(value[number]), number, chunk, make, spec)

    return rounded(value, spec.dtype, refuse)


# ------------------------------------------------------------------------------------- messages


def _refuse(value: float, number: int, chunk: Chunk, make: Combine, spec: TensorSpec) -> NoReturn:
    """Refuse an entry of a result that isn't finite, by a source or by numbers too large."""
    index, dtype = index_of(chunk.offset + number, spec.shape), spec.dtype
    vectors = chunk.sources if chunk.base is None else (chunk.base, *chunk.sources)
    models = [*(("base",) * len(make.base)), *make.models]
    entries = [float(vector[number]) for vector in vectors]
    for model, tensor, each in zip(models, make.tensors, entries, strict=True):
        if not isfinite(each):
            raise NotFiniteFault(tensor.spec.name, index, each, model, _state(tensor))
    most = LARGEST_OF[dtype]
    if any(abs(each) > most for each in entries):
        raise OverflowFault(spec.name, index, value, dtype)
    made_of = ", ".join(f"{each:.9g} of '{m}'" for m, each in zip(models, entries, strict=True))
    other = f", or {LONGER_DTYPE}" if isfinite(value) else ""
    by = f"{_recipe(make)} of {made_of}"
    raise OverflowFault(spec.name, index, value, dtype, by, _smaller(make) + other)


def _state(tensor: TensorInfo) -> str:
    return " once it is dequantised" if isinstance(tensor.form, Dequantised | Quantised) else ""


def _recipe(make: Combine) -> str:
    """Return a recipe with its numbers, as messages write it."""
    arguments = ", ".join(f"{name}={_numbers(value)}" for name, value in make.arguments)
    divided = "" if make.divisor == 1.0 else f" divided by {make.divisor:.9g} (scales)"
    return f"{make.method}({arguments}){divided}"


def _numbers(value: object) -> str:
    return shown(value[0] if isinstance(value, tuple) and len(value) == 1 else value)


def _smaller(make: Combine) -> str:
    """Return the advice to change the number that enlarges the result most."""
    if make.provider:
        package = make.provider.rpartition(" ")[0]
        return (
            f"'{make.method}' comes from {package}; correct the package, or choose another method"
        )
    sizes = {"scale": max(abs(make.divisor), 1 / abs(make.divisor))} if make.divisor != 1.0 else {}
    for name, value in make.arguments:
        numbers = value if isinstance(value, tuple) else (value,)
        sizes[name] = max((abs(n) for n in numbers if not isinstance(n, str)), default=0.0)
    name = max(sizes, key=lambda name: sizes[name], default="")
    return f"choose a smaller '{name}'" if name else "choose another method"
