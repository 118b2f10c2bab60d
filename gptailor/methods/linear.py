"""Linear combination of the sources."""

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
