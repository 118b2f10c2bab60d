"""Task vectors added where one source alone has changed, and averaged where several have."""

from typing import final

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Kernel, Measured, Vector
from gptailor.methods.arrays import masked, namespace


@final
class Ram(Kernel):
    """Changes of one source alone, added, and changes of several, averaged.

    Formula: θ_b + Σ τ_i / c over the active entries, those with |τ_i| > epsilon; c is how many
    sources are active there.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: where no source is active θ_b stays to the byte; one source is that source where it
    is active, up to rounding.
    Paper: arXiv 2601.13572.
    """

    name = "ram"

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + the mean of the active entries."""
        vectors, count = active_entries(chunk, arithmetic.one_number(arguments, "epsilon"))
        mean = arithmetic.total(vectors) / namespace(count).clip(count, 1.0, None)
        return arithmetic.base_moved(chunk, [mean], [1.0])


def active_entries(chunk: Chunk, epsilon: float | int) -> tuple[list[Vector], Vector]:
    """Return the task vectors, 0 where they aren't active, and the active sources of each entry."""
    xp = namespace(chunk.origin)
    vectors, count = [], xp.zeros_like(chunk.origin)
    for vector in chunk.task_vectors():
        mask = ~(abs(vector) <= epsilon)  # NaN is active, and refused
        count += mask
        vectors.append(masked(vector, mask))
    return vectors, count
