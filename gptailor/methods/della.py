"""Task vectors with entries dropped at random, small ones more often."""

from typing import final

from gptailor.methods import arithmetic, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Measured, Vector
from gptailor.methods.arrays import Array, masked, namespace
from gptailor.methods.shapes import Float64, Int64

_INDEX_BITS = 32


class RankedEntries(task_vectors.TrimmedTaskVectors):
    """Task vectors with randomly kept entries; large entries are kept more often."""

    def unit(self, inputs: Inputs, arguments: ByName) -> int:
        """Return the length of a row."""
        return inputs.width

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the row's width, the key of each source's draws, and each source's divisor."""
        seed, width = int(arguments["seed"]), inputs.width
        keys = tuple(arithmetic.draw_key(seed, inputs.place, model) for model in inputs.models)
        if arguments["rescale"] == "density":  # which divides entry by entry
            return (width, *keys, *(1.0,) * len(keys))

        def vectors(chunk: Chunk) -> list[Vector]:
            return self.kept(chunk, arguments, (width, *keys))[0]

        return (width, *keys, *task_vectors.divisors_of(inputs, arguments, vectors, width))

    def kept(
        self, chunk: Chunk, arguments: ByName, measured: Measured
    ) -> tuple[list[Vector], Measured]:
        """Return the task vectors, 0 where the draw drops the entry, and the divisors."""
        width, count = int(measured[0]), len(chunk.sources)
        own = arguments["rescale"] == "density"
        both = (arguments[name] for name in ("density", "epsilon"))
        each = zip(chunk.task_vectors(), *both, measured[1 : 1 + count], strict=True)
        vectors = []
        for vector, density, epsilon, key in each:
            if density < 1:
                likely = _probabilities(width, density, epsilon, vector)
                vector = _kept(vector, chunk.offset, int(key), likely, own=own)  # noqa: PLW2901
            vectors.append(vector)
        return vectors, measured[1 + count :]


@final
class DellaLinear(RankedEntries):
    """Task vectors with entries dropped at random, the smaller the likelier, and added.

    Formula: θ_b + Σ (scale · w_i / d_i) · τ_i where the draw keeps the entry, in source order; with
    normalize = yes the weights are divided by their sum. Entries are ranked by |τ_i| in their row
    of n entries: the smallest has rank 1, and equal entries keep the order of the row. The entry of
    rank r is kept with the probability p = (density - ε) + 2ε (r - 1) / (n - 1). `rescale` decides
    d_i: each entry's own p (density); the share of Σ |τ_i| that the kept entries have (l1, of the
    tensor); or 1 (no).
    Granularity: ranks per row, along the last axis (a vector is one row); draws per element, keyed
    by seed, tensor name and model name as in `dare`.
    Arithmetic: ranks and draws exact, p and Σ |τ_i| in float64, the rest float32; the result is
    float32.
    Degenerate: density 1 keeps all, whatever ε is: task arithmetic with the weights scale · w_i,
    bit for bit. With ε = 0 the same entries are dropped as by `dare`. A row of one entry has p =
    density. Scale 0 or task vectors 0 give θ_b to the byte. NaN has the largest rank; infinity or
    NaN is refused with l1.
    Paper: arXiv 2406.11617.
    """

    name = "della_linear"


@final
class Della(RankedEntries):
    """Task vectors with entries dropped at random, the smaller the likelier, merged by sign.

    Formula: θ_b + scale · Σ (w_i / d_i) · τ_i over the kept entries where w_i τ_i has the sign of
    the sum of all kept entries; with normalize = yes divided by Σ w_i of these entries. The kept
    entries and d_i are the same as in `della_linear`.
    Granularity: ranks per row, along the last axis; draws, sign and sum per element.
    Arithmetic: ranks and draws exact, p and Σ |τ_i| in float64, the rest float32; the result is
    float32.
    Degenerate: density 1 is `ties` of density 1; one source is `della_linear`, if it isn't
    normalised; where the kept ones sum to 0 θ_b stays to the byte; so it does with scale 0.
    Infinity or NaN is refused with rescale = l1.
    Paper: arXiv 2406.11617.
    """

    name = "della"


def _probabilities(
    width: int, density: float, epsilon: float, like: Vector
) -> Float64[Array, " width"]:
    """Return the probabilities of keeping entries, from the smallest of a row on."""
    xp = namespace(like)
    ranks = xp.arange(width, dtype=xp.float64, device=like.device)
    if width == 1:
        return xp.full_like(ranks, density)
    return ranks * (2.0 * epsilon / (width - 1)) + (density - epsilon)


def _kept(
    vector: Vector, offset: int, key: int, likely: Float64[Array, " width"], *, own: bool
) -> Vector:
    """Return the vector, 0 where the draw drops an entry; with `own` divided by each entry's p."""
    order = _order(vector, len(likely))
    xp = namespace(vector)
    limits = xp.astype(xp.ceil(likely * 2.0**53), xp.int64)
    keep = arithmetic.draws(key, offset, vector)[order].reshape(-1, len(likely)) < limits
    mask = xp.empty_like(keep.reshape(-1))
    mask[order] = keep.reshape(-1)
    kept = masked(vector, mask)
    if not own:
        return kept
    divisors = xp.empty_like(kept)
    divisors[order] = xp.tile(xp.astype(likely, xp.float32), (len(kept) // len(likely),))
    kept /= divisors
    return kept


def _order(vector: Vector, width: int) -> Int64[Array, " n"]:
    """Return the entries' numbers row by row, each from the smallest magnitude to the largest.

    Magnitudes are sorted with the numbers behind them, so that no two are equal.
    """
    xp, n = namespace(vector), len(vector)
    bits = xp.astype(arithmetic.magnitude(vector), xp.int64) << _INDEX_BITS
    bits |= xp.arange(n, dtype=xp.int64, device=vector.device)
    ordered = xp.sort(bits.reshape(-1, width), axis=1)
    return ordered.reshape(-1) & ((1 << _INDEX_BITS) - 1)
