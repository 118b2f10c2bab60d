"""The merge methods' arithmetic: one `Kernel` for each `Method` of the registry, by its name.

A kernel measures whole tensors first, chunk by chunk, and combines them then, chunk by chunk. All
that is done to an entry is done by single additions, subtractions, multiplications and divisions,
each rounded to float32: the result is the same for any chunk size, any number of threads and any
device. A coefficient is a float64 that is rounded to float32 where it meets a tensor. A source
whose coefficient is 0 is left out, also where it holds infinity or NaN; and where nothing is added
to θ_b, it keeps its bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from gptailor.methods import angles, draws
from gptailor.methods.measure import (
    Chunk,
    Inputs,
    gram_of_sources,
    gram_of_task_vectors,
    magnitude,
    thresholds,
)

Given = Mapping[str, float | int | tuple[float | int, ...]]
"""A method's arguments by name, complete."""

_INFINITY = 0x7F800000  # a float32's bits

Measured = tuple[float | int, ...]
"""What a kernel learnt of the whole tensors: a few numbers."""


@final
@dataclass(frozen=True, slots=True)
class Kernel:
    """A merge method: what it measures of the whole tensors, how it combines a chunk of them."""

    measure: Callable[[Inputs, Given], Measured]
    combine: Callable[[Chunk, Given, Measured], Float32[Tensor, " n"]]


def linear(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Weighted sum of the sources.

    Formula: Σ w_i θ_i, added in the order of the sources; not normalised.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: a weight of 0 leaves its source out, all 0 give 0; one source with the weight 1 is
    returned to the byte; equal sources with weights that sum to 1 give the source up to rounding.
    Paper: model soups, arXiv 2203.05482.
    """
    return _sum(chunk.sources, _numbers(given, "weights"), chunk)


def slerp(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Spherical interpolation of two sources, a and b.

    Formula: sin((1 - t)θ)/sinθ · a + sin(tθ)/sinθ · b, θ the angle between a and b.
    Granularity: per tensor, flattened: one angle for all of its entries.
    Arithmetic: angle and coefficients in float64, the rest in float32; the result is float32.
    Degenerate: t = 0 gives a and t = 1 gives b, to the byte. (1 - t)·a + t·b where one of them is
    zero or sinθ < 1e-4, parallel (equal sources among them) or opposite; see `angles.PARALLEL`.
    Infinity or NaN in a source is refused.
    Paper: none on arXiv; Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    return _sum(chunk.sources, measured, chunk)


def task_arithmetic(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Scaled task vectors added to the base.

    Formula: θ_b + Σ λ_i τ_i with τ_i = θ_i - θ_b, the sum in the order of the sources.
    Granularity: per element.
    Arithmetic: float32; the result is float32.
    Degenerate: all λ 0, or all sources equal to θ_b, give θ_b to the byte; one source with λ = 1
    is that source up to rounding; N equal sources act as one with the sum of the λ.
    Paper: arXiv 2212.04089.
    """
    return _moved(chunk, chunk.task_vectors(), _numbers(given, "scales"))


def ties(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Trim, elect a sign, and merge the task vectors that agree with it.

    Formula: θ_b + scale · the mean of those kept τ_i whose sign is that of the sum of all kept
    ones. Kept are the k = max(1, round(density · n)) largest |τ_i| of a source, and all that equal
    the k-th: which entries are kept doesn't depend on their order.
    Granularity: the trimming per tensor and source; sign and mean per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 trims nothing; one source is task arithmetic with its largest entries;
    equal sources act as one; where the kept ones sum to 0 (all task vectors 0, two that cancel)
    θ_b stays to the byte; so it does with scale 0. NaN counts as the largest magnitude and stays.
    Paper: arXiv 2306.01708.
    """
    kept = [
        _at_least(vector, int(least))
        for vector, least in zip(chunk.task_vectors(), measured, strict=True)
    ]
    sign = torch.sign(_total(kept))
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for vector in kept:
        share = torch.relu_(vector * sign)  # its magnitude where it agrees, else 0
        total.add_(share)
        count.add_(share.sign_())
    mean = total.mul_(sign).div_(count.clamp_(min=1.0))
    return _moved(chunk, [mean], [_number(given, "scale")])


def dare(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Drop task vector entries at random, rescale the others.

    Formula: θ_b + Σ (scale / density) · τ_i where the draw keeps the entry, in source order.
    Granularity: per element; the draw hashes the entry's number in the tensor with a key made of
    seed, tensor name and model name alone. Two layers of one model that are merged at one place
    have the same draws, therefore.
    Arithmetic: draws exact in 53 bits, the rest float32; the result is float32.
    Degenerate: density 1 is task arithmetic with λ = scale, bit for bit; scale 0 or task vectors 0
    give θ_b to the byte; equal sources of different names have different draws.
    Paper: arXiv 2311.03099.
    """
    density = _number(given, "density")
    vectors = [
        torch.where(
            draws.kept_entries(int(key), chunk.offset, vector.shape[0], density, vector.device),
            vector,
            0.0,
        )
        for vector, key in zip(chunk.task_vectors(), measured, strict=True)
    ]
    return _moved(chunk, vectors, [_number(given, "scale") / density] * len(vectors))


def breadcrumbs(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """Task arithmetic without the outliers and without the small entries.

    Formula: θ_b + Σ scale · τ_i where low_i ≤ |τ_i| ≤ high_i, in source order. Of a source's n
    entries k = max(1, round(density · n)) are kept, the min(round(gamma · n), n - k) largest and
    the smallest rest are not. An entry that equals the largest or smallest kept magnitude is kept,
    so that equal magnitudes share one fate and order doesn't matter.
    Granularity: the masks per tensor and source; the sum per element.
    Arithmetic: float32, thresholds exact; the result is float32.
    Degenerate: density 1 (or all magnitudes equal) masks nothing: task arithmetic with λ = scale,
    bit for bit; a tensor of one entry keeps it; scale 0 or task vectors 0 give θ_b to the byte;
    equal sources act as one with their number as scale. NaN counts as the largest magnitude.
    Paper: arXiv 2312.06795.
    """
    vectors = []
    for i, vector in enumerate(chunk.task_vectors()):
        high, low = map(int, measured[2 * i : 2 * i + 2])
        masked = torch.where(magnitude(vector) <= high, vector, 0.0)
        vectors.append(_at_least(masked, low))
    return _moved(chunk, vectors, [_number(given, "scale")] * len(vectors))


def model_stock(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """The mean of the sources, pulled towards the base the more they disagree.

    Formula: t · mean(θ_i) + (1 - t) · θ_b with t = N·c / (1 + (N - 1)·c), c the mean cosine of the
    N(N - 1)/2 pairs of task vectors.
    Granularity: per tensor, flattened: one t for all of its entries.
    Arithmetic: cosines and t in float64, the rest in float32; the result is float32.
    Degenerate: a task vector 0 has no angle, its cosines count as 0; all 0 give θ_b. A negative c
    would give t < 0, a step away from every source (and a pole at c = -1/(N - 1)), where the
    formula's premise, sources scattered around one centre, is void: t is 0 then, θ_b to the byte.
    c is at most 1, and so is t: equal sources give their mean. Infinity or NaN is refused.
    Paper: arXiv 2403.19522.
    """
    (share,) = measured
    mean = _total(chunk.sources) / _like(chunk.origin, float(len(chunk.sources)))
    return _sum((mean, chunk.origin), (share, 1.0 - share), chunk)


def karcher(chunk: Chunk, given: Given, measured: Measured) -> Float32[Tensor, " n"]:
    """The Riemannian mean of the sources' directions, as long as they are on average.

    Formula: mean(‖θ_i‖) · m, m the fixed point of m ← exp_m(mean_i log_m(u_i)) on the unit sphere,
    u_i = θ_i / ‖θ_i‖, from the normalised mean on, until the step is below 1e-10 or 256 are done.
    Granularity: per tensor, flattened.
    Arithmetic: float64 in the space of coefficients, then Σ c_i θ_i in float32 in source order; the
    result is float32.
    Degenerate: a zero tensor has no direction, only a length: it counts in mean(‖θ_i‖) alone; all
    zero give 0. Equal sources give the source up to rounding. Directions that cancel (two opposite
    sources) have no mean on the sphere: the result is mean(θ_i). A source opposite to the
    iterate is equally far in all directions and pulls in none. Infinity or NaN is refused.
    Paper: none on arXiv; Karcher, Riemannian center of mass and mollifier smoothing, CPAM 30, 1977.
    """
    return _sum(chunk.sources, measured, chunk)


# --------------------------------------------------------------------------------------- measuring


def _nothing(inputs: Inputs, given: Given) -> Measured:
    return ()


def _slerp(inputs: Inputs, given: Given) -> Measured:
    return angles.slerp_coefficients(gram_of_sources(inputs), _number(given, "t"))


def _ties(inputs: Inputs, given: Given) -> Measured:
    kept = max(1, round(_number(given, "density") * inputs.elements))
    if kept >= inputs.elements:
        return (0,) * len(inputs.models)
    return tuple(least for (least,) in thresholds(inputs, (kept,)))


def _dare(inputs: Inputs, given: Given) -> Measured:
    seed = int(_number(given, "seed"))
    return tuple(draws.key(seed, inputs.place, model) for model in inputs.models)


def _breadcrumbs(inputs: Inputs, given: Given) -> Measured:
    """The largest and the smallest kept magnitude of each source, one after the other."""
    kept = max(1, round(_number(given, "density") * inputs.elements))
    if kept >= inputs.elements:
        return (2**31 - 1, 0) * len(inputs.models)
    above = min(round(_number(given, "gamma") * inputs.elements), inputs.elements - kept)
    both = thresholds(inputs, (above + 1, above + kept))
    return tuple(threshold for pair in both for threshold in pair)


def _model_stock(inputs: Inputs, given: Given) -> Measured:
    return (angles.stock_share(gram_of_task_vectors(inputs)),)


def _karcher(inputs: Inputs, given: Given) -> Measured:
    return angles.karcher_coefficients(gram_of_sources(inputs))


# -------------------------------------------------------------------------------------- arithmetic


def _sum(
    vectors: Sequence[Float32[Tensor, " n"]], coefficients: Sequence[float | int], chunk: Chunk
) -> Float32[Tensor, " n"]:
    """Σ c_i v_i in order, without those whose coefficient is 0."""
    terms = [
        vector if coefficient == 1 else vector * coefficient
        for vector, coefficient in zip(vectors, coefficients, strict=True)
        if coefficient != 0
    ]
    return _total(terms) if terms else torch.zeros_like(chunk.sources[0])


def _total(terms: Iterable[Float32[Tensor, " n"]]) -> Float32[Tensor, " n"]:
    first, *others = terms
    if not others:
        return first
    total = first + others[0]
    for term in others[1:]:
        total.add_(term)
    return total


def _moved(
    chunk: Chunk, vectors: Sequence[Float32[Tensor, " n"]], scales: Sequence[float | int]
) -> Float32[Tensor, " n"]:
    """θ_b + Σ λ_i v_i; θ_b's own bits where that sum is 0, a negative zero among them."""
    change = _sum(vectors, scales, chunk)
    return chunk.origin - (0.0 - change)  # θ_b + change would make +0 of a negative zero


def _at_least(vector: Float32[Tensor, " n"], least: int) -> Float32[Tensor, " n"]:
    """The vector, 0 where its `magnitude` is less than `least`; NaN stays."""
    if least == 0:
        return vector
    below = torch.tensor(min(least - 1, _INFINITY), dtype=torch.int32).view(torch.float32)
    return torch.nn.functional.hardshrink(vector, float(below))


def _like(vector: Float32[Tensor, " n"], number: float) -> Float32[Tensor, " one"]:
    """A number as a tensor of its device: CUDA multiplies by the reciprocal of a Python number."""
    return torch.full((1,), number, dtype=torch.float32, device=vector.device)


def _number(given: Given, name: str) -> float | int:
    value = given[name]
    if isinstance(value, tuple):
        raise TypeError(f"'{name}' takes one number, not {len(value)}")
    return value


def _numbers(given: Given, name: str) -> tuple[float | int, ...]:
    value = given[name]
    if not isinstance(value, tuple):
        raise TypeError(f"'{name}' takes one number for each source, as a tuple")
    return value


KERNELS: dict[str, Kernel] = {
    "linear": Kernel(_nothing, linear),
    "slerp": Kernel(_slerp, slerp),
    "task_arithmetic": Kernel(_nothing, task_arithmetic),
    "ties": Kernel(_ties, ties),
    "dare": Kernel(_dare, dare),
    "breadcrumbs": Kernel(_breadcrumbs, breadcrumbs),
    "model_stock": Kernel(_model_stock, model_stock),
    "karcher": Kernel(_karcher, karcher),
}
