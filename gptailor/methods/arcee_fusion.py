"""The first source, with the entries of the second where their change matters most."""

from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gptailor.methods import arithmetic, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector

_EPSILON = 1e-8
"""A number added to each probability, so that none is 0."""
_LN2_HIGH = 6.93147180369123816490e-01  # its last bits are 0, so that products with it are exact
_LN2_LOW = 1.90821492927058770002e-10
_EXP_TERMS = 13
_LOG_TERMS = 11
_LEAST_EXPONENT = -700.0  # exp of less is 0 beside a probability of 1


@final
class ArceeFusion(Kernel):
    """The first source, a, which takes the entries of the second, b, that matter most.

    Formula: b where |b - a| · KL(softmax(b's row) ‖ softmax(a's row)) ≥ median + 1.5 · (Q3 - Q1) of
    these products over the tensor, a elsewhere; 1e-8 is added to each probability. The quartiles
    are the values number ⌊q (n - 1)⌋ in ascending order, from 0 on, of all n.
    Granularity: the divergence per row, along the last axis (a vector is one row), the threshold
    per tensor, the choice per element.
    Arithmetic: probabilities and divergences in float64, by polynomials, the products in float32,
    the quartiles exact; what is chosen is a's or b's own to the byte, in float32.
    Degenerate: equal sources give a; where half of the products or more are 0 and so is the
    threshold, the entries that are the same are b's too, which changes nothing. Infinity or NaN is
    refused.
    Paper: none on arXiv; Arcee Fusion, as mergekit has it.
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
            a, b = (source.double().view(-1, width) for source in chunk.sources)
            divergences += _divergence(b, a).tolist()

        def importances(chunk: Chunk) -> list[Vector]:
            return [_importance(chunk, width, divergences)]

        ranks = [n - int(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
        (quartiles,) = arithmetic.selected(inputs, importances, lambda _: ranks, width)
        bits = torch.tensor(quartiles, dtype=torch.int32).view(torch.float32).double()
        first, median, third = bits.tolist()
        return (median + 1.5 * (third - first), width, *divergences)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return b where its change matters most, else a."""
        threshold, width = float(measured[0]), int(measured[1])
        importance = _importance(chunk, width, measured[2:])
        a, b = chunk.sources
        return torch.where(importance.double() >= threshold, b, a)


def _importance(chunk: Chunk, width: int, divergences: list[float] | Measured) -> Vector:
    """Return |b - a| times its row's divergence."""
    first, count = chunk.offset // width, len(chunk.sources[0]) // width
    rows = torch.tensor(divergences[first : first + count], dtype=torch.float64).float()
    a, b = chunk.sources
    return ((b - a).abs_().view(-1, width) * rows.to(a.device)[:, None]).view(-1)


def _divergence(
    of: Float64[Tensor, "rows width"], to: Float64[Tensor, "rows width"]
) -> Float64[Tensor, " rows"]:
    """Return KL(softmax(of) ‖ softmax(to)) of each row, never below 0 but for rounding."""
    p, q = _softmax(of) + _EPSILON, _softmax(to) + _EPSILON
    return sums.row_sums(p * _log(p / q)).clamp_(min=0.0)


def _softmax(rows: Float64[Tensor, "rows width"]) -> Float64[Tensor, "rows width"]:
    powers = _exp(rows - rows.amax(dim=1, keepdim=True))
    return powers / sums.row_sums(powers)[:, None]


def _exp(x: Float64[Tensor, "rows width"]) -> Float64[Tensor, "rows width"]:
    """Return e^x of numbers up to 0.

    It uses additions and multiplications alone, so all devices agree.
    """
    x = x.clamp(min=_LEAST_EXPONENT)
    power = (x / _LN2_HIGH).round_()
    remainder = x - power * _LN2_HIGH - power * _LN2_LOW
    result = torch.ones_like(x)
    for n in range(_EXP_TERMS, 0, -1):  # 1 + x/1 (1 + x/2 (1 + …))
        result = result * remainder / float(n) + 1.0
    two = ((power.long() + 1023) << 52).view(torch.float64)  # 2^power
    return result * two


def _log(x: Float64[Tensor, "rows width"]) -> Float64[Tensor, "rows width"]:
    """Return the logarithm of positive numbers, as 2 artanh((m - 1)/(m + 1)).

    It uses divisions and additions alone, so all devices agree.
    """
    mantissa, exponent = torch.frexp(x)  # in [0.5, 1)
    small = mantissa < 0.70710678118654752440
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    power = (exponent - small.to(exponent.dtype)).double()
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square, result = z * z, torch.zeros_like(z)
    for n in range(_LOG_TERMS, -1, -1):
        result = result * square + 1.0 / (2 * n + 1)
    return power * _LN2_HIGH + (power * _LN2_LOW + z * result * 2.0)
