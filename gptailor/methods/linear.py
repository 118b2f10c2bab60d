"""Linear combination of the sources, or of their task vectors, added to the base."""

from typing import final

from gptailor.methods import arithmetic, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Kernel, Measured, Vector


@final
class Linear(Kernel):
    """Linear combination of the sources.

    Formula: Σ w_i θ_i, added in the order of the sources; with normalize = yes divided by Σ w_i.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: a coefficient w_i of 0 leaves its source out, all 0 give 0; one source with the
    coefficient 1 is returned to the byte; equal sources with coefficients that sum to 1 give the
    source up to rounding.
    Paper: model soups, arXiv 2203.05482.
    """

    name = "linear"

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return Σ w_i θ_i."""
        return arithmetic.combined_sources(chunk, task_vectors.weight_shares(arguments))


@final
class TaskArithmetic(Kernel):
    """Scaled task vectors added to the base.

    Formula: θ_b + Σ w_i τ_i with τ_i = θ_i - θ_b, the sum in the order of the sources; with
    normalize = yes divided by Σ w_i.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: all w 0, or all sources equal to θ_b, give θ_b to the byte; one source with w = 1
    is that source up to rounding; N equal sources act as one with the sum of the w.
    Paper: arXiv 2212.04089.
    """

    name = "task_arithmetic"

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + Σ w_i τ_i."""
        return arithmetic.base_moved_by_task_vectors(chunk, task_vectors.weight_shares(arguments))
