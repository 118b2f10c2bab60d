"""The mean of the sources, pulled towards the base by their angle."""

import math
from typing import final

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class ModelStock(Kernel):
    """The mean of the sources, pulled towards the base the more they disagree.

    Formula: t · mean(θ_i) + (1 - t) · θ_b with t = N·c / (1 + (N - 1)·c), c the mean cosine of the
    N(N - 1)/2 pairs of task vectors.
    Granularity: per tensor, flattened: one t for all of its entries.
    Arithmetic: cosines and t in float64, the rest in float32; the result is float32.
    Degenerate: a task vector 0 has no angle, its cosines count as 0; all 0 give θ_b. A negative c
    would give t < 0, a step away from every source (and a pole at c = -1/(N - 1)), where the
    formula's premise, sources scattered around one centre, is void: t is 0 then, θ_b to the byte.
    c is at most 1, and so is t: equal sources give their mean. Infinity or NaN is refused.
    Paper: arXiv 2403.19522.
    """

    name = "model_stock"

    def measure(self, inputs: Inputs, given: ByName) -> Measured:
        """t."""
        gram = arithmetic.gram_of_task_vectors(inputs)
        count = len(gram)
        cosines = [arithmetic.cosine(gram, i, j) for i in range(count) for j in range(i)]
        mean = math.fsum(cosines) / len(cosines)
        share = count * mean / (1.0 + (count - 1) * mean) if mean > 0.0 else 0.0
        return (min(1.0, share),)

    def combine(self, chunk: Chunk, given: ByName, measured: Measured) -> Vector:
        """t · mean(θ_i) + (1 - t) · θ_b."""
        (share,) = measured
        mean = arithmetic.total(chunk.sources) / arithmetic.number_beside(
            chunk.origin, float(len(chunk.sources))
        )
        return arithmetic.combination((mean, chunk.origin), (share, 1.0 - share), chunk)
