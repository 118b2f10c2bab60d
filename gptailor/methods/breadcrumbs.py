"""Task vectors without their largest and smallest entries, added to the base."""

from typing import final

from gptailor.methods import arithmetic, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class Breadcrumbs(Kernel):
    """Task arithmetic without the outliers and without the small entries.

    Formula: θ_b + Σ scale · w_i · τ_i where low_i ≤ |τ_i| ≤ high_i, in source order; with normalize
    = yes the weights are divided by their sum. A source keeps k = max(1, round(density · n)) of
    its n entries, without the min(round(gamma · n), n - k) largest and the smallest rest. An entry
    that equals the largest or smallest kept magnitude is kept, so that equal magnitudes share one
    fate and order doesn't matter.
    Granularity: the masks per tensor and source; the sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 (or all magnitudes equal) masks nothing: task arithmetic with the weights
    scale · w_i, bit for bit; a tensor of one entry keeps it; scale 0 or task vectors 0 give θ_b to
    the byte; equal sources act as one with the sum of their weights. NaN counts as the largest
    magnitude.
    Paper: arXiv 2312.06795.
    """

    name = "breadcrumbs"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the largest and the smallest kept magnitude of each source, in pairs."""
        return kept_magnitudes(inputs, arguments)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + Σ scale · w_i · τ_i between both magnitudes."""
        return task_vectors.summed(chunk, between(chunk, measured), arguments)


def kept_magnitudes(inputs: Inputs, arguments: ByName) -> Measured:
    """Return the largest and the smallest kept magnitude of each source, in pairs."""
    ranks: list[tuple[int, ...]] = []
    both = (arithmetic.number_each(arguments, name) for name in ("density", "gamma"))
    for density, gamma in zip(*both, strict=True):
        kept = max(1, round(density * inputs.elements))
        above = min(round(gamma * inputs.elements), inputs.elements - kept)
        ranks.append((above + 1, above + kept) if kept < inputs.elements else ())
    limits = arithmetic.thresholds(inputs, ranks)
    return tuple(number for pair in limits for number in pair or (2**31 - 1, 0))


def between(chunk: Chunk, measured: Measured) -> list[Vector]:
    """Return the task vectors, 0 where their magnitude is beyond either limit."""
    vectors = []
    for i, vector in enumerate(chunk.task_vectors()):
        high, low = map(int, measured[2 * i : 2 * i + 2])
        vectors.append(arithmetic.within(vector, low, high))
    return vectors
