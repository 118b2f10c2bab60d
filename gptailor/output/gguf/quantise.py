"""Quantisers: float32 numbers to the blocks of llama.cpp's types.

llama.cpp's own library in the package `xllamacpp` quantises to every type, with an importance
matrix too. Without it, the package `gguf` quantises to the types that it knows.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from gptailor.checkpoint.formats.gguf.kinds import TensorKind

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_OF_GGUF = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})
"""The types that the package `gguf` writes, without an importance matrix."""


def quantised(values: Floats, kind: TensorKind, importance: Floats | None = None) -> Bytes:
    """Return finite numbers as a type's blocks, [blocks, bytes of a block].

    The type's block divides the count of the numbers. A block with a number that the type can't
    hold has a scale that isn't finite, unless the number has no importance or exceeds 1e9.
    `importance` has each column's importance, [columns], finite and not negative; the numbers are
    then whole rows of the matrix. Q8_0 ignores it.
    """
    blocks = values.reshape(-1, kind.block)
    number = GGMLQuantizationType[kind.name]
    if (library := _library()) is None:
        made: NDArray[Any] = quantize(blocks, number)
        return made.view(np.uint8)
    columns = kind.block if importance is None else len(importance)
    result = np.zeros((len(blocks), kind.bytes), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    library(
        int(number), blocks.ctypes.data, result.ctypes.data, 0, values.size // columns, columns,
        weights,
    )  # fmt: skip
    return result


def needs_library(kind: TensorKind, *, weighted: bool) -> bool:
    """Return whether llama.cpp's library must quantise to a type, and isn't installed."""
    own = kind.plain is not None or (kind.name in _OF_GGUF and not (weighted and kind.weighted))
    return not own and _library() is None


@cache
def _library() -> Any:
    """Return llama.cpp's `ggml_quantize_chunk`, or None without the package `xllamacpp`."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    for path in Path(spec.origin).parent.glob("xllamacpp*.so"):
        function = ctypes.CDLL(str(path)).ggml_quantize_chunk
        function.restype = ctypes.c_size_t
        function.argtypes = [
            ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p,
        ]  # fmt: skip
        return function
    return None
