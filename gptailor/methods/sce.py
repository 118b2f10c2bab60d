"""Task vectors where models differ most, weighted by their size, merged by their signs."""

import math
from typing import final

from gptailor.methods import arithmetic, sums, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import Array, double, masked, namespace
from gptailor.methods.shapes import Float64


@final
class Sce(Kernel):
    """Task vectors where the models differ most, weighted by size, merged by the sign.

    Formula: θ_b + Σ w_i τ_i / Σ w_i over the selected entries with the sign of Σ τ_i. Selected are
    the k = max(1, round(density · m)) positions with the largest variance over the sources, and all
    that equal the k-th; m variances are above 0. w_i = mean(τ_i²) over the tensor, where entries
    that aren't selected count as 0, divided by the sum of these means; where that sum is below
    `floor` all w_i are equal.
    Granularity: selection and weights per tensor; sign and mean per element.
    Arithmetic: variances in float32, thresholds exact, weights in float64, the rest float32; the
    result is float32.
    Degenerate: density 1 selects all; below that nothing is selected where the sources are equal,
    and θ_b stays to the byte; so it does where the selected ones sum to 0. A task vector 0 has no
    weight. Infinity or NaN is refused.
    Paper: arXiv 2408.07990.
    """

    name = "sce"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the smallest selected variance, and the weights."""
        least = _least_selected(inputs, arguments["density"])

        def squares(chunk: Chunk) -> list[Float64[Array, " n"]]:
            return [each * each for each in map(double, _selected(chunk, least))]

        totals = sums.sums(inputs, squares, [[] for _ in inputs.models])
        means = [total / inputs.elements for total in totals]
        total = math.fsum(means)
        if total < arguments["floor"] or total == 0.0:
            return (least, *(1.0 / len(means) for _ in means))
        return (least, *(mean / total for mean in means))

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + the weighted mean of the selected entries that agree."""
        weights = measured[1:]
        vectors = _selected(chunk, int(measured[0]))
        each = [(v, w) for v, w in zip(vectors, weights, strict=True) if w != 0]
        some = [w for _, w in each]
        merged = task_vectors.agreement([v for v, _ in each], some, some)
        return arithmetic.base_moved(chunk, [merged], [1.0])


def _least_selected(inputs: Inputs, density: float | int) -> int:
    """Return the smallest magnitude of a variance that is selected; 0 where all are."""
    if density >= 1:
        return 0
    differing = 0

    def variances(chunk: Chunk) -> list[Vector]:
        nonlocal differing
        variance = _variance(chunk)
        differing += int(namespace(variance).count_nonzero(variance))
        return [variance]

    def ranks(_: int) -> tuple[int, ...]:
        return (max(1, round(density * differing)),)

    ((least,),) = arithmetic.selected(inputs, variances, ranks)
    return max(1, least)  # a variance of 0 is never selected


def _variance(chunk: Chunk) -> Vector:
    """Return the variance over the sources, times their number: Σ (τ_i - mean τ)²."""
    vectors = chunk.task_vectors()
    mean = arithmetic.total(vectors) / arithmetic.number_beside(vectors[0], float(len(vectors)))
    return arithmetic.total(each * each for each in (vector - mean for vector in vectors))


def _selected(chunk: Chunk, least: int) -> list[Vector]:
    """Return the task vectors, 0 where the variance's magnitude is less than `least`."""
    if least == 0:
        return chunk.task_vectors()
    mask = arithmetic.magnitude(_variance(chunk)) >= least
    return [masked(vector, mask) for vector in chunk.task_vectors()]
