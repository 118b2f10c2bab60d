"""The mean of the sources, pulled towards the base by their angle."""

import math
from typing import final

from gptailor.methods import arithmetic, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import Array, double, namespace
from gptailor.methods.shapes import Float64


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
        return inputs.width if arguments["by"] == "row" else 1

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return t; by row the row's width."""
        if arguments["by"] == "row":
            sums.refuse_infinite(inputs)
            return (inputs.width,)
        gram = sums.gram_of(inputs, "task_vectors")
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
        if arguments["by"] == "tensor":
            return arithmetic.combination((mean, chunk.origin), (number, 1.0 - number), chunk)
        shares = _shares(chunk, int(number))[:, None]
        rows, own = mean.reshape(-1, int(number)), chunk.origin.reshape(-1, int(number))
        xp = namespace(own)
        moved = rows * xp.astype(shares, xp.float32) + own * xp.astype(1.0 - shares, xp.float32)
        return xp.where(shares > 0.0, moved, own).reshape(-1)


def _shares(chunk: Chunk, width: int) -> Float64[Array, " rows"]:
    """Return t of each row."""
    xp, base = namespace(chunk.origin), double(chunk.origin)
    rows = [(double(source) - base).reshape(-1, width) for source in chunk.sources]
    norms = [xp.sqrt(sums.row_sums(row * row)) for row in rows]
    count = len(rows)
    total = xp.zeros_like(norms[0])
    for i in range(count):
        for j in range(i):
            lengths = norms[i] * norms[j]
            cosines = sums.row_sums(rows[i] * rows[j]) / xp.where(lengths > 0, lengths, 1.0)
            total += xp.clip(cosines, -1.0, 1.0)
    mean = xp.clip(total / float(count * (count - 1) // 2), 0.0, None)
    return xp.clip(mean * count / (mean * (count - 1) + 1.0), None, 1.0)
