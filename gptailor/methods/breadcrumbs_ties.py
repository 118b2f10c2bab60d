"""Task vectors without their largest and smallest entries, merged where they agree on a sign."""

from typing import final

from gptailor.methods import breadcrumbs, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class BreadcrumbsTies(Kernel):
    """Task vectors without outliers and small entries, merged where they agree on a sign.

    Formula: θ_b + scale · Σ w_i τ_i over the kept entries whose sign (of w_i τ_i) is that of the
    sum of all kept ones; with normalize = yes divided by Σ w_i of those. The kept
    entries are those of `breadcrumbs`.
    Granularity: the masks per tensor and source; sign and sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 is `ties` of density 1; one source is `breadcrumbs`; where the kept ones
    sum to 0 θ_b stays to the byte; so it does with scale 0.
    Paper: arXiv 2312.06795 and 2306.01708.
    """

    name = "breadcrumbs_ties"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the largest and the smallest kept magnitude of each source, in pairs."""
        return breadcrumbs.kept_magnitudes(inputs, arguments)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + scale · the sum of the kept entries that agree."""
        return task_vectors.elected(chunk, breadcrumbs.between(chunk, measured), arguments)
