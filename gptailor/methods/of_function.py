"""Merge methods of other packages: functions of whole tensors, or of stretches of them."""

from typing import final

import numpy as np

from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import host, namespace
from gptailor.plan.faults import TailorError
from gptailor.plan.registry import METHODS, Method


@final
class MethodError(TailorError):
    """A failure of another package's merge method, or a result of another shape or type."""

    exit_code = 3


@final
class OfFunction(Kernel):
    """The merge that a function of another package computes.

    Formula: `function(sources, base, **arguments)`, of float32 arrays of NumPy's.
    Granularity: the whole tensor, or, for a function that is declared `by_entry`, flat stretches.
    Arithmetic: the function's own; the result is float32.
    Degenerate: a result of another shape or type is an error.
    Paper: the function's own.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the tensor's shape."""
        return () if self.method.by_entry else inputs.shape

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return 1 for a function by entry, else the number of all entries."""
        return 1 if self.method.by_entry else max(1, inputs.elements)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return the function's result, flat. Raises MethodError."""
        like = chunk.sources[0]
        shape = like.shape if self.method.by_entry else tuple(map(int, measured))
        sources = [host(source).reshape(shape) for source in chunk.sources]
        base = None if chunk.base is None else host(chunk.base).reshape(shape)
        assert self.method.function is not None
        try:
            result = self.method.function(sources, base, **arguments)
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(result, np.ndarray) or not np.isdtype(result.dtype, "real floating"):
            got = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
            raise self._error(f"returned {got}, expected an array of float32")
        if result.shape != shape:
            raise self._error(f"returned the shape {[*result.shape]}, expected {[*shape]}")
        vector: Vector = namespace(like).asarray(
            result.astype(np.float32).reshape(like.shape), device=like.device
        )
        return vector

    def _error(self, words: str) -> MethodError:
        name = self.method.name
        return MethodError(f"the method '{name}' of {METHODS.package(name)} {words}")
