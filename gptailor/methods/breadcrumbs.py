"""Task vectors without their largest and smallest entries, added to the base."""

from typing import final

import torch

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class Breadcrumbs(Kernel):
    """Task arithmetic without the outliers and without the small entries.

    Formula: θ_b + Σ scale · τ_i where low_i ≤ |τ_i| ≤ high_i, in source order. Of a source's n
    entries k = max(1, round(density · n)) are kept, the min(round(gamma · n), n - k) largest and
    the smallest rest are not. An entry that equals the largest or smallest kept magnitude is kept,
    so that equal magnitudes share one fate and order doesn't matter.
    Granularity: the masks per tensor and source; the sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 (or all magnitudes equal) masks nothing: task arithmetic with λ = scale,
    bit for bit; a tensor of one entry keeps it; scale 0 or task vectors 0 give θ_b to the byte;
    equal sources act as one with their number as scale. NaN counts as the largest magnitude.
    Paper: arXiv 2312.06795.
    """

    name = "breadcrumbs"

    def measure(self, inputs: Inputs, given: ByName) -> Measured:
        """The largest and the smallest kept magnitude of each source, one after the other."""
        kept = max(1, round(arithmetic.one_number(given, "density") * inputs.elements))
        if kept >= inputs.elements:
            return (2**31 - 1, 0) * len(inputs.models)
        above = min(
            round(arithmetic.one_number(given, "gamma") * inputs.elements), inputs.elements - kept
        )
        both = arithmetic.thresholds(inputs, [(above + 1, above + kept)] * len(inputs.models))
        return tuple(threshold for pair in both for threshold in pair)

    def combine(self, chunk: Chunk, given: ByName, measured: Measured) -> Vector:
        """θ_b + Σ scale · τ_i between both magnitudes."""
        vectors = []
        for i, vector in enumerate(chunk.task_vectors()):
            high, low = map(int, measured[2 * i : 2 * i + 2])
            masked = torch.where(arithmetic.magnitude(vector) <= high, vector, 0.0)
            vectors.append(arithmetic.at_least(masked, low))
        return arithmetic.base_moved(
            chunk, vectors, [arithmetic.one_number(given, "scale")] * len(vectors)
        )
