"""From a Gram matrix to coefficients: the geometry of slerp, model_stock and karcher, in float64.

A handful of Python numbers each: no tensor, no library whose sums depend on threads.
"""

import math
from collections.abc import Sequence

from gptailor.methods.measure import Gram

PARALLEL = 1e-4
"""Two tensors whose angle has a smaller sine are merged linearly.

Near 0 that changes nothing: coefficients differ by less than θ²/15 < 1e-9, a float32's rounding
being 6e-8. Near π slerp has coefficients of 1/sin θ, which amplify that rounding: at 1e-4 to 6e-4,
still less than a bfloat16's (2e-3), beyond it the result would be made of rounding errors.
"""

CANCELLED = 1e-6
"""A sum of unit vectors is no direction where its length is below this: the Gram matrix, exact to
some 1e-15, gives the length's square, hence lengths to some 3e-8."""

_MEAN_TOLERANCE = 1e-10
ITERATIONS = 256


def slerp_coefficients(gram: Gram, t: float) -> tuple[float, float]:
    """The coefficients of both tensors on the arc; of the chord where there is no arc.

    The arc cosine of a float64 is wrong by some 1e-16/θ for a small angle, and the coefficients
    depend on it by θ times that: they are right to some 1e-16.
    """
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    if norms == 0.0:
        return 1.0 - t, t
    angle = math.acos(_clamped(gram[0][1] / norms))
    sine = math.sin(angle)
    if sine < PARALLEL:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def stock_share(gram: Gram) -> float:
    """t = N·cosθ / (1 + (N - 1)·cosθ), within [0, 1]; θ: the task vectors' mean pairwise angle."""
    count = len(gram)
    cosines = [_cosine(gram, i, j) for i in range(count) for j in range(i)]
    cosine = math.fsum(cosines) / len(cosines)
    if cosine <= 0.0:
        return 0.0
    return min(1.0, count * cosine / (1.0 + (count - 1) * cosine))


def _cosine(gram: Gram, i: int, j: int) -> float:
    norms = math.sqrt(gram[i][i]) * math.sqrt(gram[j][j])
    return _clamped(gram[i][j] / norms) if norms > 0.0 else 0.0


def _clamped(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))


def karcher_coefficients(gram: Gram) -> tuple[float, ...]:
    """The coefficients of the sources in their Riemannian mean, times the mean of the norms.

    Every iterate is a linear combination of the unit sources, so the iteration knows coefficients
    and the unit sources' Gram matrix only.
    """
    count = len(gram)
    norms = [math.sqrt(gram[i][i]) for i in range(count)]
    some = [i for i in range(count) if norms[i] > 0.0]
    if not some:
        return (0.0,) * count
    units = [[1.0 if i == j else _cosine(gram, i, j) for j in some] for i in some]
    direction = _riemannian_mean(units)
    if direction is None:
        return (1.0 / count,) * count
    length = math.fsum(norms) / count
    coefficients = [0.0] * count
    for i, coefficient in zip(some, direction, strict=True):
        coefficients[i] = coefficient * (length / norms[i])
    return tuple(coefficients)


def _riemannian_mean(units: Gram) -> list[float] | None:
    """The mean's coefficients, of unit length; None where the unit vectors cancel."""
    count = len(units)
    mean = [1.0 / count] * count
    if (length := _length(mean, units)) < CANCELLED:
        return None
    mean = [m / length for m in mean]
    for _ in range(ITERATIONS):
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
    """The mean of the sources' logarithms at `mean`, each θ/sinθ · (u - cosθ · mean)."""
    cosines = [_clamped(_dot(row, mean)) for row in units]
    pulls = [_pull(cosine) / len(units) for cosine in cosines]
    back = _dot(pulls, cosines)
    return [pull - back * m for pull, m in zip(pulls, mean, strict=True)]


def _pull(cosine: float) -> float:
    """θ/sinθ; 1, its limit, at the mean, and opposite to it, where the logarithm has no direction.

    Times u - cosθ · mean, which is sinθ long, that is no step in both cases.
    """
    angle = math.acos(cosine)
    sine = math.sin(angle)
    return angle / sine if sine > CANCELLED else 1.0


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _length(vector: Sequence[float], units: Gram) -> float:
    """The length of a combination of the unit vectors."""
    return math.sqrt(max(0.0, _dot(vector, [_dot(row, vector) for row in units])))
