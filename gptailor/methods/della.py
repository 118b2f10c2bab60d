"""Task vectors whose entries are dropped by rank and chance, merged where they agree on a sign."""

from typing import final

from gptailor.methods import della_linear, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class Della(Kernel):
    """Task vectors with entries dropped at random, the smaller the likelier, merged by sign.

    Formula: θ_b + scale · Σ (w_i / d_i) · τ_i over the kept entries whose sign (of w_i τ_i) is that
    of the sum of all kept ones; with normalize = yes divided by Σ w_i of those. The kept
    entries and d_i are those of `della_linear`.
    Granularity: ranks per row, along the last axis; draws, sign and sum per element.
    Arithmetic: ranks and draws exact, p and Σ |τ_i| in float64, the rest float32; the result is
    float32.
    Degenerate: density 1 is `ties` of density 1; one source is `della_linear`, if it isn't
    normalised; where the kept ones sum to 0 θ_b stays to the byte; so it does with scale 0.
    Infinity or NaN is refused with rescale = l1.
    Paper: arXiv 2406.11617.
    """

    name = "della"

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the length of a row."""
        return inputs.width

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the row's width, the key of each source's draws, and each source's divisor."""
        return della_linear.measured_ranks(inputs, arguments)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + scale · the sum of the kept entries that agree."""
        vectors, divisors = della_linear.kept_by_rank(chunk, arguments, measured)
        return task_vectors.elected(chunk, vectors, arguments, divisors)
