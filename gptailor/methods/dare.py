"""Task vectors with entries dropped at random, and the others rescaled."""

from typing import final

from gptailor.methods.arithmetic import (
    ByName,
    Chunk,
    Inputs,
    Measured,
    Vector,
    draw_key,
    kept_entries,
)
from gptailor.methods.arrays import masked
from gptailor.methods.task_vectors import TrimmedTaskVectors, divisors_of


class DrawnEntries(TrimmedTaskVectors):
    """Task vectors with randomly kept entries, all with the same probability."""

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the key of each source's draws, and then each source's divisor."""
        seed = int(arguments["seed"])
        keys = tuple(draw_key(seed, inputs.place, model) for model in inputs.models)
        return (
            *keys,
            *divisors_of(inputs, arguments, lambda chunk: self.kept(chunk, arguments, keys)[0]),
        )

    def kept(
        self, chunk: Chunk, arguments: ByName, measured: Measured
    ) -> tuple[list[Vector], Measured]:
        """Return the task vectors, 0 where the draw drops the entry, and the divisors."""
        vectors, count = chunk.task_vectors(), len(chunk.stored_sources)
        densities = arguments["density"]
        for i, (density, key) in enumerate(zip(densities, measured[:count], strict=True)):
            keep = kept_entries(int(key), chunk.offset, vectors[i], density)
            vectors[i] = masked(vectors[i], keep)
        return vectors, measured[count:]


@final
class Dare(DrawnEntries):
    """Task vectors with entries dropped at random, and the others rescaled.

    Formula: θ_b + Σ (scale · w_i / d_i) · τ_i where the draw keeps the entry, in source order; with
    normalize = yes the weights w_i are divided by their sum. `rescale` decides d_i: the density;
    the share of Σ |τ_i| that the kept entries have (l1, of the tensor); or 1 (no).
    Granularity: per element; the draw hashes the entry's number in the tensor with a key made of
    seed, tensor name and model name alone. Two layers of one model that are merged at one place
    have the same draws, therefore.
    Arithmetic: draws exact in 53 bits, Σ |τ_i| in float64, the rest float32; the result is float32.
    Degenerate: density 1 is task arithmetic with the weights scale · w_i, bit for bit; scale 0 or
    task vectors 0 give θ_b to the byte; equal sources of different names have different draws.
    Where nothing that isn't 0 is kept there is nothing to rescale. Infinity or NaN is refused with
    l1.
    Paper: arXiv 2311.03099.
    """

    name = "dare"


@final
class DareTies(DrawnEntries):
    """Task vectors with entries dropped at random, merged where they agree on a sign.

    Formula: θ_b + scale · Σ (w_i / d_i) · τ_i over the kept entries where w_i τ_i has the sign of
    the sum of all kept entries; with normalize = yes divided by Σ w_i of these entries. d_i and the
    draws are the same as in `dare`.
    Granularity: per element; the draws are keyed by seed, tensor name and model name.
    Arithmetic: draws exact in 53 bits, Σ |τ_i| in float64, the rest float32; the result is float32.
    Degenerate: density 1 is `ties` of density 1; one source is `dare`; where the kept ones sum to 0
    θ_b stays to the byte; so it does with scale 0. Infinity or NaN is refused with rescale = l1.
    Paper: arXiv 2311.03099 and 2306.01708.
    """

    name = "dare_ties"
