"""Arrays of the merge methods: NumPy's, or torch's on any device, through the array API standard.

The library of an array computes. torch is imported only by code that already has torch's tensors,
so a merge of files needs NumPy alone. NumPy has no bfloat16: its arrays hold the bits, as uint16.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptailor.methods import native
from gptailor.methods.shapes import Bool, Float32, Float64, Shaped

Array = Any
"""An array of NumPy's or a tensor of torch's, of the shape and dtype that its annotation names."""

FLOAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes of merges: their names in NumPy and torch by their names in safetensors."""
_BFLOAT16_EXPONENT = 0x7F80


def namespace(*arrays: Array) -> Any:
    """Return the functions of the arrays' library, named as in the array API standard."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np
    from array_api_compat import array_namespace  # imported only with torch

    return array_namespace(*arrays)


def double(values: Shaped[Array, "*axes"]) -> Float64[Array, "*axes"]:
    """Return a copy in float64."""
    xp = namespace(values)
    return xp.astype(values, xp.float64)


def float32s(numbers: Sequence[float | int], like: Shaped[Array, "..."]) -> Float32[Array, " n"]:
    """Return numbers rounded to float32, in the library and on the device of another array."""
    xp = namespace(like)
    wide = xp.asarray(numbers, dtype=xp.float64, device=like.device)
    return xp.astype(wide, xp.float32)


def with_zeros(
    values: Shaped[Array, "*axes"], count: int, axis: int = 0
) -> Shaped[Array, "*longer"]:
    """Return values with `count` zeros appended along an axis."""
    if not count:
        return values
    xp = namespace(values)
    shape = list(values.shape)
    shape[axis] = count
    return xp.concat([values, xp.zeros(shape, dtype=values.dtype, device=values.device)], axis=axis)


def masked(values: Float32[Array, "*axes"], mask: Bool[Array, "*axes"]) -> Float32[Array, "*axes"]:
    """Return values where the mask is true, and +0 elsewhere, also for infinity and NaN."""
    if isinstance(values, np.ndarray):  # ten times as fast as np.where
        bits: Float32[Array, "*axes"] = (values.view(np.int32) * mask).view(np.float32)
        return bits
    return namespace(values).where(mask, values, 0.0)


def host(values: Shaped[Array, "*axes"]) -> Shaped[np.ndarray, "*axes"]:
    """Return values as an array of NumPy's."""
    return np.asarray(values if isinstance(values, np.ndarray) else values.cpu())


def narrowed(values: Shaped[Array, "*axes"], dtype: str) -> Shaped[Array, "*axes"]:
    """Return values rounded to a dtype of safetensors, to nearest even; too large ones to infinity.

    `dtype` is F64, F32, F16 or BF16. A NaN may become any bits.
    """
    if not isinstance(values, np.ndarray):
        import torch  # the caller has its tensors

        return values.to(getattr(torch, FLOAT_NAMES[dtype]))
    if dtype != "BF16":
        return values.astype(FLOAT_NAMES[dtype], copy=False)
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounding = (bits >> 16) & np.uint32(1)
    rounding += np.uint32(0x7FFF)
    rounding += bits
    rounding >>= np.uint32(16)
    return rounding.astype(np.uint16)


def widened(values: Shaped[Array, "*axes"]) -> Float32[Array, "*axes"]:
    """Return values in float32; NumPy's uint16 are the bits of bfloat16."""
    if not isinstance(values, np.ndarray) or values.dtype != np.uint16:
        xp = namespace(values)
        return xp.astype(values, xp.float32, copy=False)
    if native.takes(values):
        return native.from_bfloat16(values)
    bits = values.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def finite(values: Shaped[Array, "*axes"]) -> Bool[Array, "*axes"]:
    """Return where values are finite; NumPy's uint16 are the bits of bfloat16."""
    if isinstance(values, np.ndarray) and values.dtype == np.uint16:
        return (values & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
    return namespace(values).isfinite(values)
