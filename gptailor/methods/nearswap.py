"""The first source, moved to the second one where both are near."""

from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Kernel,
    Measured,
    Vector,
    number_beside,
)
from gptailor.methods.arrays import namespace

_NEAREST = 1e-6
"""The least difference that is used; a smaller one counts as this."""


@final
class Nearswap(Kernel):
    """The first source, a, which takes the entries of the second, b, where they are near its own.

    Formula: w · b + (1 - w) · a with w = min(1, t / max(|a - b|, 1e-6)).
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: t = 0 gives a to the byte; an entry that differs by t or less is b's to the byte,
    if t is 1e-6 or more. Where both are equal a stays.
    Paper: not on arXiv; the card of alchemonaut/QuartetAnemoi-70B-t0.0001 on the Hub, 2024.
    """

    name = "nearswap"

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return a, moved to b where b is near."""
        (a, b), t = chunk.sources, arguments["t"]
        if t == 0:
            return a
        xp = namespace(a)
        differences = xp.clip(abs(a - b), _NEAREST, None)
        near = xp.clip(number_beside(a, float(t)) / differences, None, 1.0)
        moved = b * near + a * (1.0 - near)
        moved = xp.where(near >= 1.0, b, moved)
        return xp.where(a == b, a, moved)
