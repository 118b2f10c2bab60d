"""Task vectors added where one source alone has changed, and averaged where several have.

`ram_plus` adds more of the changes of one source alone.
"""

from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Inputs,
    Kernel,
    Measured,
    Vector,
    base_moved,
    combination,
    total,
)
from gptailor.methods.arrays import masked, namespace


@final
class Ram(Kernel):
    """Changes of one source alone, added, and changes of several, averaged.

    Formula: θ_b + Σ τ_i / c over the active entries with |τ_i| > epsilon; c is how many sources are
    active there.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: where no source is active θ_b stays to the byte; one source is that source where it
    is active, up to rounding.
    Paper: arXiv 2601.13572.
    """

    name = "ram"

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + the mean of the active entries."""
        vectors, count = active_entries(chunk, arguments["epsilon"])
        mean = total(vectors) / namespace(count).clip(count, 1.0, None)
        return base_moved(chunk, [mean], [1.0])


@final
class RamPlus(Kernel):
    """Changes of one source alone, scaled up and added, and changes of several, averaged.

    Formula: θ_b + Σ τ_i / c over the active entries with |τ_i| > epsilon; c is how many sources are
    active there; where c is 1, τ_i · (1 + r · min(s_i / u_i, alpha)), s_i and u_i being how many
    entries source i shares with others and has alone.
    Granularity: s_i and u_i per tensor and source; the sum per element.
    Arithmetic: counts exact, factors in float64, the rest float32; the result is float32.
    Degenerate: r = 0 or alpha = 0 is `ram`; a source that shares nothing isn't scaled; where no
    source is active θ_b stays to the byte.
    Paper: arXiv 2601.13572.
    """

    name = "ram_plus"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the factor for the entries that each source changes alone."""
        epsilon = arguments["epsilon"]
        r, alpha = arguments["r"], arguments["alpha"]
        shared, alone = [0] * len(inputs.models), [0] * len(inputs.models)
        for chunk in inputs.chunks():
            vectors, count = active_entries(chunk, epsilon)
            for i, vector in enumerate(vectors):
                mask = vector != 0
                alone[i] += int(namespace(mask).count_nonzero(mask & (count == 1)))
                shared[i] += int(namespace(mask).count_nonzero(mask & (count > 1)))
        each = zip(shared, alone, strict=True)
        return tuple(1.0 + r * min(s / u if u else alpha, alpha) for s, u in each)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + the scaled entry of one source, or the mean of several."""
        vectors, count = active_entries(chunk, arguments["epsilon"])
        mean = total(vectors) / namespace(count).clip(count, 1.0, None)
        alone = combination(vectors, measured, chunk)
        return base_moved(chunk, [namespace(mean).where(count == 1, alone, mean)], [1.0])


def active_entries(chunk: Chunk, epsilon: float | int) -> tuple[list[Vector], Vector]:
    """Return the task vectors, 0 where they aren't active, and the active sources of each entry."""
    xp = namespace(chunk.origin)
    vectors, count = [], xp.zeros_like(chunk.origin)
    for vector in chunk.task_vectors():
        mask = ~(abs(vector) <= epsilon)  # NaN is active, and refused
        count += mask
        vectors.append(masked(vector, mask))
    return vectors, count
