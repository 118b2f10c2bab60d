"""Task vectors with weights, trimmed or whole: their sum, and the merge of agreeing ones."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

from gptailor.methods import arithmetic, native, sums
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import Array, double, namespace
from gptailor.methods.rounding import single
from gptailor.methods.shapes import Float64
from gptailor.plan.registry import METHODS


class TrimmedTaskVectors(Kernel):
    """A merge of some entries of the task vectors: added, or merged where they agree on a sign."""

    @abstractmethod
    def kept(
        self, chunk: Chunk, arguments: ByName, measured: Measured
    ) -> tuple[list[Vector], Measured]:
        """Return the task vectors, 0 where an entry is dropped, and each one's divisor, if any."""

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + scale · the sum or the mean of the kept entries."""
        vectors, divisors = self.kept(chunk, arguments, measured)
        merged = elected if METHODS[self.name].elects else summed
        return merged(chunk, vectors, arguments, divisors)


def weight_shares(arguments: ByName) -> tuple[float | int, ...]:
    """Return the weights, divided by their sum if `normalize` is yes."""
    numbers: tuple[float | int, ...] = arguments["weight"]
    if arguments["normalize"] == "no":
        return numbers
    total = math.fsum(numbers)
    return tuple(number / total for number in numbers)


def summed(
    chunk: Chunk, vectors: Sequence[Vector], arguments: ByName, divisors: Sequence[float | int] = ()
) -> Vector:
    """Return θ_b + Σ scale · w_i / divisor_i · v_i; the weights may be divided by their sum."""
    scale = arguments["scale"]
    each = zip(weight_shares(arguments), divisors or [1.0] * len(vectors), strict=True)
    return arithmetic.base_moved(chunk, vectors, [w * scale / d for w, d in each])


def elected(
    chunk: Chunk, vectors: Sequence[Vector], arguments: ByName, divisors: Sequence[float | int] = ()
) -> Vector:
    """Return θ_b + scale · Σ w_i / divisor_i · v_i, over the vectors with the sign of their sum.

    Where `normalize` is yes the sum is divided by the sum of the weights w_i of the vectors that
    agree.
    """
    weights = arguments["weight"]
    each = list(zip(vectors, weights, divisors or [1.0] * len(vectors), strict=True))
    kept = [arithmetic.multiplied(vector, w / d) for vector, w, d in each if w != 0]
    over = [w for w in weights if w != 0] if arguments["normalize"] == "yes" else None
    merged = [agreement(kept, [1.0] * len(kept), over)] if kept else []
    return arithmetic.base_moved(chunk, merged, [arguments["scale"]] * len(kept[:1]))


def agreement(
    vectors: Sequence[Vector],
    factors: Sequence[float | int],
    weights: Sequence[float | int] | None = None,
) -> Vector:
    """Return Σ f_i v_i over the vectors with the sign of Σ v_i, ÷ Σ w_i over these.

    The result is 0 where the sum of the weights is.
    """
    if native.takes(*vectors):
        return native.agreeing_sum(
            vectors, list(map(single, factors)), weights and list(map(single, weights))
        )
    xp = namespace(*vectors)
    sign = xp.sign(arithmetic.total(vectors))
    merged, count = xp.zeros_like(sign), xp.zeros_like(sign)
    for i, (vector, factor) in enumerate(zip(vectors, factors, strict=True)):
        share = xp.clip(vector * sign, 0.0, None)  # its magnitude where it agrees; NaN stays
        merged += arithmetic.multiplied(share, factor)
        if weights is not None:
            agrees = xp.astype(share > 0, xp.float32)
            count += arithmetic.multiplied(agrees, weights[i])
    merged *= sign
    if weights is not None:
        count += count == 0
        merged /= count
    return merged


def divisors_of(
    inputs: Inputs,
    arguments: ByName,
    kept: Callable[[Chunk], Sequence[Vector]],
    width: int = sums.SUM_ENTRIES,
) -> tuple[float, ...]:
    """Return for each source the divisor that restores its size after entries are dropped.

    By `rescale`: its density; the share of Σ |τ| that is left; or 1. A source without a weight has
    1.
    """
    densities = arguments["density"]
    how = arguments["rescale"]
    if how != "l1":
        return tuple(map(float, densities)) if how == "density" else (1.0,) * len(densities)
    counted = [
        i for i, weight in enumerate(arguments["weight"]) if weight != 0 and densities[i] < 1
    ]
    if not counted:
        return (1.0,) * len(densities)

    def terms(chunk: Chunk) -> list[Float64[Array, " n"]]:
        complete, left = chunk.task_vectors(), kept(chunk)
        return [abs(double(vectors[i])) for vectors in (complete, left) for i in counted]

    sizes = sums.sums(inputs, terms, [[] for _ in range(2 * len(counted))], width)
    ratios = dict(zip(counted, zip(sizes, sizes[len(counted) :], strict=False), strict=True))
    return tuple(
        after / before
        if (before := ratios.get(i, (0.0, 0.0))[0]) and (after := ratios[i][1])
        else 1.0
        for i in range(len(densities))
    )
