"""The loops of merges compiled from `native.c`, which several threads can run at the same time.

The library is optional. It is called by ctypes and has the bits of NumPy's computation. NumPy
computes if the library is missing, or if the environment variable GPTAILOR_NATIVE is `off`.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gptailor.methods.shapes import Float32, Float64, Int64, Shaped

SOURCE = Path(__file__).with_name("native.c")
LIBRARY = Path(__file__).with_name("libnative.so")
"""The file that `hatch_build.py` compiles from `SOURCE`, on macOS too."""
_STRETCH = 2**10
_ROWS_OF_STRIPS = 2**10
"""The entries of `sums` and of `wide` in `native.c`, for each pair and for each vector."""

Vectors = Sequence[Shaped[np.ndarray, " n"]]


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None where NumPy computes."""
    off = os.environ.get("GPTAILOR_NATIVE") == "off" or sys.byteorder != "little"
    return None if off else library_at(LIBRARY)


def library_at(path: Path) -> ctypes.CDLL | None:
    """Return a library that was compiled from this package's source, else None."""
    try:
        found = ctypes.CDLL(str(path))
        found.source_digest.restype = ctypes.c_char_p
        digest: bytes = found.source_digest()
    except (OSError, AttributeError):
        return None
    for name in ("agree", "combine", "count", "gram", "mask", "widen"):
        found[name].restype = None
    return found if digest.decode() == hashlib.sha256(SOURCE.read_bytes()).hexdigest() else None


def takes(*arrays: Any) -> bool:
    """Return whether the library can compute with all of these arrays.

    It takes contiguous NumPy arrays of float32, or of bfloat16's bits.
    """
    return library() is not None and all(
        isinstance(array, np.ndarray) and array.dtype.char in "fH" and array.flags.c_contiguous
        for array in arrays
    )


def from_bfloat16(bits: Shaped[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """Return the numbers of bfloat16's bits."""
    out = np.empty(bits.shape, np.float32)
    _call().widen(ctypes.c_size_t(bits.size), _at(bits), _at(out))
    return out


def to_bfloat16(
    values: Float32[np.ndarray, "*axes"],
) -> tuple[Shaped[np.ndarray, "*axes"], float]:
    """Return the bits of values rounded to bfloat16, and the largest magnitude of the values.

    The magnitude is NaN if there is a NaN.
    """
    out = np.empty(values.shape, np.uint16)
    return out, _single(_call().narrow(ctypes.c_size_t(values.size), _at(values), _at(out)))


def largest(values: Float32[np.ndarray, "*axes"]) -> float:
    """Return the largest magnitude of values; NaN if there is one."""
    return _single(_call().largest(ctypes.c_size_t(values.size), _at(values)))


def weighted_sum(
    vectors: Vectors,
    coefficients: Sequence[float],
    base: Shaped[np.ndarray, " n"] | None = None,
    *,
    differences: bool = False,
    moved: bool = True,
) -> Float32[np.ndarray, " n"]:
    """Return Σ c_i v_i, added to the base if there is one.

    With `differences`, v_i - base takes the place of v_i; then `moved` may be false, which doesn't
    add the base.
    """
    first = vectors[0] if base is None else base
    out = np.empty(first.shape, np.float32)
    _call().combine(
        ctypes.c_size_t(first.size),
        *_base(base),
        *_rows(vectors),
        _floats(coefficients),
        int(differences),
        int(moved and base is not None),
        _at(out),
    )
    return out


def with_zeros_beyond(
    vector: Float32[np.ndarray, " n"], least: int, most: int
) -> Float32[np.ndarray, " n"]:
    """Return the vector, +0 where its magnitude as an integer is beyond the limits."""
    out = np.empty(vector.shape, np.float32)
    size, limits = ctypes.c_size_t(vector.size), (ctypes.c_int32(least), ctypes.c_int32(most))
    _call().mask(size, _at(vector), *limits, _at(out))
    return out


def count_magnitudes(
    vector: Float32[np.ndarray, " n"], counts: Int64[np.ndarray, " buckets"], bucket: int = -1
) -> None:
    """Count the upper 15 bits of magnitudes; with a bucket, the lower 16 bits in that bucket."""
    _call().count(ctypes.c_size_t(vector.size), _at(vector), ctypes.c_int32(bucket), _at(counts))


def agreeing_sum(
    vectors: Vectors, factors: Sequence[float], weights: Sequence[float] | None
) -> Float32[np.ndarray, " n"]:
    """Return the result of `task_vectors.agreement`. The vectors have float32."""
    out = np.empty(vectors[0].shape, np.float32)
    count, places, _ = _rows(vectors)
    numbers = _floats(factors), None if weights is None else _floats(weights)
    _call().agree(ctypes.c_size_t(out.size), count, places, *numbers, _at(out))
    return out


def gram(
    vectors: Vectors, base: Shaped[np.ndarray, " n"] | None, width: int
) -> Float64[np.ndarray, "pairs blocks"]:
    """Return the dot product of each pair of vectors in each block of `width` entries.

    Pairs are (0, 0), (0, 1), .., (1, 1), ..; with a base, of the differences from it. The order of
    additions is the same as in `sums.py`. The vectors' length is a multiple of `width`.
    """
    count, blocks = len(vectors), len(vectors[0]) // width
    pairs = count * (count + 1) // 2
    sums, wide = np.empty(pairs * _STRETCH), np.empty(count * _ROWS_OF_STRIPS)
    products = np.empty((pairs, blocks))
    _call().gram(
        ctypes.c_size_t(blocks), *_base(base), *_rows(vectors), _at(sums), _at(wide), _at(products)
    )
    return products


def _call() -> ctypes.CDLL:
    found = library()
    assert found is not None, "no compiled library is loaded: call `takes` before"
    return found


def _at(array: Shaped[np.ndarray, "..."]) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(array))


def _address(array: Shaped[np.ndarray, "..."]) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of the time of `array.ctypes`
    return address


def _base(base: Shaped[np.ndarray, " n"] | None) -> tuple[ctypes.c_void_p | None, int]:
    return (None, 0) if base is None else (_at(base), _is_bfloat16(base))


def _rows(vectors: Vectors) -> tuple[ctypes.c_size_t, Any, bytes]:
    places = (ctypes.c_void_p * len(vectors))(*map(_address, vectors))
    return ctypes.c_size_t(len(vectors)), places, bytes(map(_is_bfloat16, vectors))


def _floats(numbers: Sequence[float]) -> Any:
    return (ctypes.c_float * len(numbers))(*numbers)


def _is_bfloat16(vector: Shaped[np.ndarray, " n"]) -> bool:
    return vector.dtype.char == "H"


def _single(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))
