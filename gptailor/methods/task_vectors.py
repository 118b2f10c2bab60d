"""Task vectors with weights, trimmed or whole: their sum, and the merge of those that agree."""

from collections.abc import Sequence

import torch

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Vector


def normalized(given: ByName) -> bool:
    """Whether a sum is divided by that of its weights."""
    return given["normalize"] == "yes"


def elected(
    chunk: Chunk,
    vectors: Sequence[Vector],
    weights: Sequence[float | int],
    given: ByName,
    factors: Sequence[float | int] = (),
) -> Vector:
    """θ_b + scale · Σ w_i v_i, over those whose sign is that of the sum of all of them.

    `factors` multiply vectors further. Where `normalize` is yes the sum is divided by that of the
    weights of those that agree. Where all sum to 0 nothing agrees, and θ_b keeps its bytes.
    """
    each = zip(vectors, weights, factors or [1.0] * len(vectors), strict=True)
    kept = [(_times(v, w * f), w) for v, w, f in each if w * f != 0]
    if not kept:
        return arithmetic.base_moved(chunk, [], [])
    sign = torch.sign(arithmetic.total(vector for vector, _ in kept))
    agreeing, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for vector, weight in kept:
        share = torch.relu_(vector * sign)  # its magnitude where it agrees, else 0
        agreeing.add_(share)
        if normalized(given):
            count.add_(_times(share.sign_(), weight))
    merged = agreeing.mul_(sign)
    if normalized(given):
        merged.div_(count.masked_fill_(count == 0, 1.0))
    return arithmetic.base_moved(chunk, [merged], [arithmetic.one_number(given, "scale")])


def _times(vector: Vector, number: float) -> Vector:
    return vector if number == 1 else vector * number
