"""Task vectors trimmed, and merged where they agree on a sign."""

from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Inputs,
    Measured,
    Vector,
    thresholds,
    within,
)
from gptailor.methods.task_vectors import TrimmedTaskVectors


@final
class Ties(TrimmedTaskVectors):
    """Task vectors trimmed, and merged where they agree on the elected sign.

    Formula: θ_b + scale · Σ w_i τ_i / Σ w_i (with normalize = no: not divided), over the kept w_i
    τ_i with the sign of the sum of all kept ones. Kept are the k_i = max(1, round(density_i · n))
    largest |τ_i| of a source, and all that equal the k_i-th: which entries are kept doesn't depend
    on their order.
    Granularity: the trimming per tensor and source; sign and mean per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 trims nothing; one source is task arithmetic with its largest entries;
    equal sources act as one; a source of weight 0 is left out; where the kept ones sum to 0 (all
    task vectors 0, two that cancel) θ_b stays to the byte; so it does with scale 0. NaN counts as
    the largest magnitude and stays.
    Paper: arXiv 2306.01708.
    """

    name = "ties"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the least kept magnitude of each task vector; 0 where all entries are kept."""
        counts = [max(1, round(density * inputs.elements)) for density in arguments["density"]]
        ranks = [(kept,) if kept < inputs.elements else () for kept in counts]
        return tuple(least[0] if least else 0 for least in thresholds(inputs, ranks))

    def kept(
        self, chunk: Chunk, arguments: ByName, measured: Measured
    ) -> tuple[list[Vector], Measured]:
        """Return the task vectors, 0 where their magnitude is less than the least kept one."""
        trimming = zip(chunk.task_vectors(), measured, strict=True)
        return [within(vector, int(least)) for vector, least in trimming], ()
