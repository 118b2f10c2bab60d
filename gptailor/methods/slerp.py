"""Spherical interpolation: of two sources, whole or row by row, and of several (`multislerp`)."""

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
    base_moved,
    base_moved_by_task_vectors,
    combined_sources,
    total,
)
from gptailor.methods.arrays import Array, double, float32s, namespace
from gptailor.methods.shapes import Float64
from gptailor.methods.sums import (
    Gram,
    clamped,
    column_sums,
    gram_of,
    refuse_infinite,
    row_sums,
)
from gptailor.methods.task_vectors import weight_shares

PARALLEL = 1e-4
"""The sine of an angle below which two tensors are merged linearly.

Near 0 that changes nothing: coefficients differ by less than θ²/15 < 1e-9, a float32's rounding
being 6e-8. Near π slerp has coefficients of 1/sin θ, which amplify that rounding: at 1e-4 to 6e-4,
still less than a bfloat16's (2e-3), beyond it the result would be made of rounding errors.
"""


@final
class Slerp(Kernel):
    """Spherical interpolation of two sources, a and b.

    Formula: sin((1 - t)θ)/sinθ · a + sin(tθ)/sinθ · b, θ the angle between a and b.
    Granularity: per tensor, flattened: one angle for all of its entries.
    Arithmetic: angle and coefficients in float64, the rest in float32; the result is float32.
    Degenerate: t = 0 gives a and t = 1 gives b, to the byte. (1 - t)·a + t·b where one of them is
    zero or sinθ < 1e-4, parallel (equal sources among them) or opposite; see `PARALLEL`.
    Infinity or NaN in a source is refused.
    Paper: not on arXiv; Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """

    name = "slerp"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the coefficients of a and b."""
        return slerp_coefficients(gram_of(inputs, "weights"), arguments["t"])

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return the coefficients times a and b."""
        return combined_sources(chunk, measured)


def slerp_coefficients(gram: Gram, t: float) -> tuple[float, float]:
    """Return the coefficients of both tensors on the arc; on the chord if the arc is undefined.

    The arc cosine of a float64 is wrong by some 1e-16/θ for a small angle, and the coefficients
    depend on it by θ times that: they are right to some 1e-16.
    """
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    if norms == 0.0:
        return 1.0 - t, t
    angle = math.acos(clamped(gram[0][1] / norms))
    sine = math.sin(angle)
    if sine < PARALLEL:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


@final
class Nuslerp(Kernel):
    """Spherical interpolation of two sources, a and b, or of their task vectors.

    Formula: sin((1 - t)θ)/sinθ · a + sin(tθ)/sinθ · b, θ the angle between a and b, t = w_2 /
    (w_1 + w_2). With of = task_vectors: θ_b + the same of both task vectors.
    Granularity: by = tensor: one angle for all entries, flattened; row: one for each row, along the
    last axis (a vector is one row); column: one for each column, along the first axis.
    Arithmetic: angles and coefficients in float64, the rest in float32; the result is float32.
    Degenerate: a weight of 0 gives the other source, to the byte (of task vectors up to rounding).
    (1 - t)·a + t·b where one of them is zero or sinθ < 1e-4, as `slerp` has it. Infinity or NaN in
    a source is refused.
    Paper: not on arXiv; Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, as
    mergekit has it.
    """

    name = "nuslerp"

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the length of a row, for angles of rows or columns, else 1."""
        return {"tensor": 1, "row": inputs.width}.get(arguments["by"]) or _columns(inputs)

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return both coefficients; by row the row's width, by column all of a, then all of b."""
        by, of, t = (
            arguments["by"],
            arguments["of"],
            _share(arguments),
        )
        if by == "tensor":
            return slerp_coefficients(gram_of(inputs, of), t)
        refuse_infinite(inputs)
        if by == "row":
            return (inputs.width,)

        def terms(chunk: Chunk) -> list[Float64[Array, " n"]]:
            a, b = _doubles(chunk, of)
            return [a * a, a * b, b * b]

        a, b = _coefficients(column_sums(inputs, terms, _columns(inputs)), t)
        return (*a, *b)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return the coefficients times a and b."""
        by, of = arguments["by"], arguments["of"]
        if by == "tensor":
            if of == "weights":
                return combined_sources(chunk, measured)
            return base_moved_by_task_vectors(chunk, measured)
        if by == "row":
            width = int(measured[0])
            a, b = (vector.reshape(-1, width) for vector in _doubles(chunk, of))
            dots = [row_sums(each) for each in (a * a, a * b, b * b)]
            both, shape = _coefficients(dots, _share(arguments)), (-1, 1)
        else:
            width = len(measured) // 2
            both, shape = (measured[:width], measured[width:]), (1, -1)
        vectors = list(chunk.sources) if of == "weights" else chunk.task_vectors()
        merged = _along(vectors, both, width, shape)
        return merged if of == "weights" else base_moved(chunk, [merged], [1.0])


def _share(arguments: ByName) -> float:
    """Return the second source's share."""
    first, second = arguments["weight"]
    return float(second / (first + second))


def _columns(inputs: Inputs) -> int:
    """Return the number of columns: the entries of one number along the first axis."""
    return inputs.elements // inputs.shape[0] if inputs.shape else 1


def _doubles(chunk: Chunk, of: str) -> list[Float64[Array, " n"]]:
    """Return the sources or their task vectors in float64, the differences too."""
    sources = [double(source) for source in chunk.sources]
    return sources if of == "weights" else [source - double(chunk.origin) for source in sources]


def _coefficients(
    dots: Sequence[Float64[Array, " m"]], t: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return a's and b's coefficients for each row or column, from ⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩."""
    each = zip(*(d.tolist() for d in dots), strict=True)
    pairs = [slerp_coefficients([[aa, ab], [ab, bb]], t) for aa, ab, bb in each]
    a, b = zip(*pairs, strict=True)
    return a, b


def _along(
    vectors: Sequence[Vector],
    both: Sequence[Sequence[float | int]],
    width: int,
    shape: tuple[int, int],
) -> Vector:
    """Return the sum of both vectors in rows of `width`, each times its coefficients."""
    terms = []
    for vector, numbers in zip(vectors, both, strict=True):
        factors = float32s(numbers, vector).reshape(shape)
        rows = vector.reshape(-1, width)
        terms.append(namespace(rows).where(factors == 0, 0.0, rows * factors).reshape(-1))
    return total(terms)


_CANCELLED = 1e-6
"""A sum of unit vectors isn't a direction where its length is below this, as in `karcher`."""


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
    Paper: not on arXiv; Goddard, "Multi-SLERP", 2025, as mergekit has it.
    """

    name = "multislerp"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the sources' coefficients."""
        gram = gram_of(inputs, arguments["of"])
        weights = weight_shares(arguments)
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
            return base_moved_by_task_vectors(chunk, measured)
        return combined_sources(chunk, measured)
