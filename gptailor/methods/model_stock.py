"""The mean of the sources, pulled towards the base by their angle."""

import math
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gptailor.methods import arithmetic, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class ModelStock(Kernel):
    """The mean of the sources, pulled towards the base the more they disagree.

    Formula: t · mean(θ_i) + (1 - t) · θ_b with t = N·c / (1 + (N - 1)·c), c the mean cosine of the
    N(N - 1)/2 pairs of task vectors.
    Granularity: by = tensor: one t for all entries, flattened; row: one for each row, along the
    last axis (a vector is one row).
    Arithmetic: cosines and t in float64, the rest in float32; the result is float32.
    Degenerate: a task vector 0 has no angle, its cosines count as 0; all 0 give θ_b. A negative c
    would give t < 0, a step away from every source (and a pole at c = -1/(N - 1)), where the
    formula's premise, sources scattered around one centre, is void: t is 0 then, θ_b to the byte.
    c is at most 1, and so is t: equal sources give their mean. Infinity or NaN is refused.
    Paper: arXiv 2403.19522.
    """

    name = "model_stock"

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the length of a row where each has its t, else 1."""
        return inputs.width if arithmetic.word(arguments, "by") == "row" else 1

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return t; by row the row's width."""
        if arithmetic.word(arguments, "by") == "row":
            sums.refuse_infinite(inputs)
            return (inputs.width,)
        gram = sums.gram_of_task_vectors(inputs)
        count = len(gram)
        cosines = [sums.cosine(gram, i, j) for i in range(count) for j in range(i)]
        mean = math.fsum(cosines) / len(cosines)
        share = count * mean / (1.0 + (count - 1) * mean) if mean > 0.0 else 0.0
        return (min(1.0, share),)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return t · mean(θ_i) + (1 - t) · θ_b."""
        (number,) = measured
        mean = arithmetic.total(chunk.sources) / arithmetic.number_beside(
            chunk.origin, float(len(chunk.sources))
        )
        if arithmetic.word(arguments, "by") == "tensor":
            return arithmetic.combination((mean, chunk.origin), (number, 1.0 - number), chunk)
        shares = _shares(chunk, int(number))[:, None]
        rows, own = mean.view(-1, int(number)), chunk.origin.view(-1, int(number))
        moved = rows * shares.float() + own * (1.0 - shares).float()
        return torch.where(shares > 0.0, moved, own).view(-1)


def _shares(chunk: Chunk, width: int) -> Float64[Tensor, " rows"]:
    """Return t of each row."""
    base = chunk.origin.double()
    rows = [(source.double() - base).view(-1, width) for source in chunk.sources]
    norms = [sums.row_sums(row * row).sqrt_() for row in rows]
    count = len(rows)
    total = torch.zeros_like(norms[0])
    for i in range(count):
        for j in range(i):
            lengths = norms[i] * norms[j]
            cosines = sums.row_sums(rows[i] * rows[j]) / torch.where(lengths > 0, lengths, 1.0)
            total += cosines.clamp_(-1.0, 1.0)
    mean = (total / float(count * (count - 1) // 2)).clamp_(min=0.0)
    return (mean * count / (mean * (count - 1) + 1.0)).clamp_(max=1.0)
