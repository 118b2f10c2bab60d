"""The first source, with the entries of the second where their change matters most."""

from typing import final

import numpy as np

from gptailor.methods import arithmetic, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import Array, double, float32s, namespace
from gptailor.methods.shapes import Float64

_EPSILON = 1e-8
"""A number added to each probability, so that no probability is 0."""
_LN2_HIGH = 6.93147180369123816490e-01  # its last bits are 0, so that products with it are exact
_LN2_LOW = 1.90821492927058770002e-10
_EXP_TERMS = 13
_LOG_TERMS = 11
_LEAST_EXPONENT = -700.0  # exp of less is 0 next to a probability of 1


@final
class ArceeFusion(Kernel):
    """The first source, a, which takes the entries of the second, b, that matter most.

    Formula: b where |b - a| · KL(softmax(b's row) ‖ softmax(a's row)) ≥ median + 1.5 · (Q3 - Q1) of
    these products over the tensor, a elsewhere; 1e-8 is added to each probability. The quartiles
    are the values number ⌊q (n - 1)⌋ in ascending order, from 0 on, of all n.
    Granularity: the divergence per row, along the last axis (a vector is one row), the threshold
    per tensor, the choice per element.
    Arithmetic: probabilities and divergences in float64, by polynomials, the products in float32,
    the quartiles exact; a chosen entry is a's or b's own to the byte, in float32.
    Degenerate: equal sources give a; where half of the products or more are 0 and so is the
    threshold, the entries that are the same are b's too, which changes nothing. Infinity or NaN is
    refused.
    Paper: not on arXiv; Arcee Fusion, as mergekit has it.
    """

    name = "arcee_fusion"

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the length of a row."""
        return inputs.width

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the threshold, the row's width, and each row's divergence."""
        sums.refuse_infinite(inputs)
        width, n = inputs.width, inputs.elements
        divergences: list[float] = []
        for chunk in inputs.chunks(width):
            a, b = (double(source).reshape(-1, width) for source in chunk.sources)
            p, q = _softmax(b) + _EPSILON, _softmax(a) + _EPSILON
            divergence = sums.row_sums(p * _log(p / q))  # KL(p ‖ q), below 0 by rounding alone
            divergences += namespace(divergence).clip(divergence, 0.0, None).tolist()

        def importances(chunk: Chunk) -> list[Vector]:
            return [_importance(chunk, width, divergences)]

        ranks = [n - int(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
        (quartiles,) = arithmetic.selected(inputs, importances, lambda _: ranks, width)
        first, median, third = np.array(quartiles, dtype=np.int32).view(np.float32).tolist()
        return (median + 1.5 * (third - first), width, *divergences)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return b where its change matters most, else a."""
        threshold, width = float(measured[0]), int(measured[1])
        importance = _importance(chunk, width, measured[2:])
        a, b = chunk.sources
        return namespace(a).where(double(importance) >= threshold, b, a)


def _importance(chunk: Chunk, width: int, divergences: list[float] | Measured) -> Vector:
    """Return |b - a| times its row's divergence."""
    first, count = chunk.offset // width, len(chunk.sources[0]) // width
    a, b = chunk.sources
    rows = float32s(divergences[first : first + count], a)
    return (abs(b - a).reshape(-1, width) * rows[:, None]).reshape(-1)


def _softmax(rows: Float64[Array, "rows width"]) -> Float64[Array, "rows width"]:
    powers = _exp(rows - namespace(rows).max(rows, axis=1, keepdims=True))
    return powers / sums.row_sums(powers)[:, None]


def _exp(x: Float64[Array, "rows width"]) -> Float64[Array, "rows width"]:
    """Return e^x of numbers up to 0.

    It uses additions and multiplications alone, so all devices agree.
    """
    xp = namespace(x)
    x = xp.clip(x, _LEAST_EXPONENT, None)
    power = xp.round(x / _LN2_HIGH)
    remainder = x - power * _LN2_HIGH - power * _LN2_LOW
    result = xp.ones_like(x)
    for n in range(_EXP_TERMS, 0, -1):  # 1 + x/1 (1 + x/2 (1 + …))
        result = result * remainder / float(n) + 1.0
    two = ((xp.astype(power, xp.int64) + 1023) << 52).view(xp.float64)  # 2^power
    return result * two


def _log(x: Float64[Array, "rows width"]) -> Float64[Array, "rows width"]:
    """Return the logarithm of positive numbers, as 2 artanh((m - 1)/(m + 1)).

    It uses divisions and additions alone, so all devices agree.
    """
    xp = namespace(x)
    mantissa, exponent = xp.frexp(x)  # in [0.5, 1)
    small = mantissa < 0.70710678118654752440
    mantissa = xp.where(small, mantissa * 2.0, mantissa)
    power = double(exponent) - double(small)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square, result = z * z, xp.zeros_like(z)
    for n in range(_LOG_TERMS, -1, -1):
        result = result * square + 1.0 / (2 * n + 1)
    return power * _LN2_HIGH + (power * _LN2_LOW + z * result * 2.0)
