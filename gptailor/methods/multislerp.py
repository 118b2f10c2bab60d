"""The weighted mean of directions, as long as the sources are on average."""

import math
from typing import final

from gptailor.methods import arithmetic, sums, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector

_CANCELLED = 1e-6
"""A sum of unit vectors is no direction where its length is below this, as in `karcher`."""


@final
class Multislerp(Kernel):
    """The weighted mean of the sources' directions, as long as they are on average.

    Formula: Σ w_i ‖θ_i‖ · m, m = Σ w_i u_i / ‖Σ w_i u_i‖, u_i = θ_i / ‖θ_i‖; with normalize = yes
    the weights are divided by their sum. The step in the tangent space at m, v = Σ w_i (u_i -
    (u_i · m) m), that the method is described with is 0 for any weights: Σ w_i u_i lies along m.
    With of = task_vectors: θ_b + the same of the τ_i.
    Granularity: per tensor, flattened.
    Arithmetic: float64 in the space of coefficients, then Σ c_i θ_i in float32 in source order; the
    result is float32.
    Degenerate: a zero tensor has no direction, only a length; all zero give 0 (or θ_b). Directions
    that cancel have no mean: Σ w_i θ_i. Equal sources give the source up to rounding, if weights
    sum to 1. Infinity or NaN is refused.
    Paper: none on arXiv; Goddard, "Multi-SLERP", 2025, as mergekit has it.
    """

    name = "multislerp"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the sources' coefficients."""
        gram = sums.gram_of(inputs, arguments["of"])
        weights = task_vectors.weight_shares(arguments)
        norms = [math.sqrt(gram[i][i]) for i in range(len(gram))]
        along = [w / n if n > 0.0 else 0.0 for w, n in zip(weights, norms, strict=True)]
        square = math.fsum(
            a * b * gram[i][j] for i, a in enumerate(along) for j, b in enumerate(along)
        )
        length = math.sqrt(max(0.0, square))
        if length < _CANCELLED:
            return tuple(weights)
        mean = math.fsum(w * n for w, n in zip(weights, norms, strict=True))
        return tuple(a * (mean / length) for a in along)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return Σ c_i θ_i, or θ_b + Σ c_i τ_i."""
        if arguments["of"] == "task_vectors":
            return arithmetic.base_moved_by_task_vectors(chunk, measured)
        return arithmetic.combined_sources(chunk, measured)
