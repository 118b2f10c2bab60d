"""Spherical interpolation of two sources."""

import math
from typing import final

from gptailor.methods import arithmetic, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.sums import Gram

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
    Paper: none on arXiv; Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """

    name = "slerp"

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the coefficients of a and b."""
        return slerp_coefficients(
            sums.gram_of(inputs, "weights"), arithmetic.one_number(arguments, "t")
        )

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return the coefficients times a and b."""
        return arithmetic.combined_sources(chunk, measured)


def slerp_coefficients(gram: Gram, t: float) -> tuple[float, float]:
    """Return the coefficients of both tensors on the arc; of the chord where there is no arc.

    The arc cosine of a float64 is wrong by some 1e-16/θ for a small angle, and the coefficients
    depend on it by θ times that: they are right to some 1e-16.
    """
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    if norms == 0.0:
        return 1.0 - t, t
    angle = math.acos(sums.clamped(gram[0][1] / norms))
    sine = math.sin(angle)
    if sine < PARALLEL:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine
