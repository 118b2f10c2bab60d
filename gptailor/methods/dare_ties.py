"""Task vectors whose entries are dropped at random, merged where they agree on a sign."""

from typing import final

from gptailor.methods import dare, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class DareTies(Kernel):
    """Task vectors with entries dropped at random, merged where they agree on a sign.

    Formula: θ_b + scale · Σ (w_i / d_i) · τ_i over the kept entries whose sign (of w_i τ_i) is that
    of the sum of all kept ones; with normalize = yes divided by Σ w_i of those. d_i and the draws
    are those of `dare`.
    Granularity: per element; the draws are keyed by seed, tensor name and model name.
    Arithmetic: draws exact in 53 bits, Σ |τ_i| in float64, the rest float32; the result is float32.
    Degenerate: density 1 is `ties` of density 1; one source is `dare`; where the kept ones sum to 0
    θ_b stays to the byte; so it does with scale 0. Infinity or NaN is refused with rescale = l1.
    Paper: arXiv 2311.03099 and 2306.01708.
    """

    name = "dare_ties"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the key of each source's draws, and then each source's divisor."""
        return dare.measured_draws(inputs, arguments)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + scale · the sum of the kept entries that agree."""
        keys, divisors = measured[: len(measured) // 2], measured[len(measured) // 2 :]
        return task_vectors.elected(
            chunk, dare.kept_by_draw(chunk, arguments, keys), arguments, divisors
        )
