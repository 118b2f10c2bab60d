"""The Riemannian mean of the sources' directions."""

import math
from collections.abc import Sequence
from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Inputs,
    Kernel,
    Measured,
    Vector,
    combined_sources,
)
from gptailor.methods.sums import (
    Gram,
    clamped,
    cosine,
    gram_of,
)

_CANCELLED = 1e-6
"""A sum of unit vectors isn't a direction where its length is below this: the Gram matrix, exact to
some 1e-15, gives the length's square, hence lengths to some 3e-8."""
_MEAN_TOLERANCE = 1e-10
_ITERATIONS = 256


@final
class Karcher(Kernel):
    """The Riemannian mean of the sources' directions, as long as they are on average.

    Formula: mean(‖θ_i‖) · m, m the fixed point of m ← exp_m(mean_i log_m(u_i)) on the unit sphere,
    u_i = θ_i / ‖θ_i‖, from the normalised mean on, until the step is below 1e-10 or 256 are done.
    Granularity: per tensor, flattened.
    Arithmetic: float64 in the space of coefficients, then Σ c_i θ_i in float32 in source order; the
    result is float32.
    Degenerate: a zero tensor has no direction, only a length: it counts in mean(‖θ_i‖) alone; all
    zero give 0. Equal sources give the source up to rounding. Directions that cancel (two opposite
    sources) have no mean on the sphere: the result is mean(θ_i). A source opposite to the
    iterate is equally far in all directions and doesn't pull. Infinity or NaN is refused.
    Paper: not on arXiv; Karcher, Riemannian center of mass and mollifier smoothing, CPAM 30, 1977.
    """

    name = "karcher"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the sources' coefficients.

        Every iterate is a linear combination of the unit sources, so the iteration knows
        coefficients and the unit sources' Gram matrix only.
        """
        gram = gram_of(inputs, "weights")
        count = len(gram)
        norms = [math.sqrt(gram[i][i]) for i in range(count)]
        some = [i for i in range(count) if norms[i] > 0.0]
        if not some:
            return (0.0,) * count
        units = [[1.0 if i == j else cosine(gram, i, j) for j in some] for i in some]
        direction = _riemannian_mean(units)
        if direction is None:
            return (1.0 / count,) * count
        length, along = math.fsum(norms) / count, dict(zip(some, direction, strict=True))
        return tuple(along[i] * (length / norms[i]) if i in along else 0.0 for i in range(count))

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return Σ c_i θ_i."""
        return combined_sources(chunk, measured)


def _riemannian_mean(units: Gram) -> list[float] | None:
    """Return the mean's coefficients, of unit length; None where the unit vectors cancel."""
    count = len(units)
    mean = [1.0 / count] * count
    if (length := _length(mean, units)) < _CANCELLED:
        return None
    mean = [m / length for m in mean]
    for _ in range(_ITERATIONS):
        step = _step(mean, units)
        length = _length(step, units)
        if length < _MEAN_TOLERANCE:
            break
        along, across = math.cos(length), math.sin(length) / length
        mean = [along * m + across * s for m, s in zip(mean, step, strict=True)]
        length = _length(mean, units)
        mean = [m / length for m in mean]
    return mean


def _step(mean: Sequence[float], units: Gram) -> list[float]:
    """Return the mean of the sources' logarithms at `mean`, each θ/sinθ · (u - cosθ · mean)."""
    cosines = [clamped(_dot(row, mean)) for row in units]
    pulls = [_pull(each) / len(units) for each in cosines]
    back = _dot(pulls, cosines)
    return [pull - back * m for pull, m in zip(pulls, mean, strict=True)]


def _pull(cos: float) -> float:
    """Return θ/sinθ; its limit 1 at the mean, and 1 opposite to it, without a direction.

    It multiplies u - cosθ · mean, which is sinθ long, so both cases give no step.
    """
    angle = math.acos(cos)
    sine = math.sin(angle)
    return angle / sine if sine > _CANCELLED else 1.0


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _length(vector: Sequence[float], units: Gram) -> float:
    """Return the length of a combination of the unit vectors."""
    return math.sqrt(max(0.0, _dot(vector, [_dot(row, vector) for row in units])))
