"""Task vectors whose entries are dropped at random, and the others rescaled."""

from typing import final

from gptailor.methods import arithmetic, task_vectors
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector
from gptailor.methods.arrays import masked


@final
class Dare(Kernel):
    """Task vectors with entries dropped at random, and the others rescaled.

    Formula: θ_b + Σ (scale · w_i / d_i) · τ_i where the draw keeps the entry, in source order; with
    normalize = yes the weights w_i are divided by their sum. d_i is what `rescale` says: the
    density; the share of Σ |τ_i| that the kept entries have (l1, of the tensor); or 1 (no).
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

    def measure(self, inputs: Inputs, arguments: ByName) -> Measured:
        """Return the key of each source's draws, and then each source's divisor."""
        return measured_draws(inputs, arguments)

    def combine(self, chunk: Chunk, arguments: ByName, measured: Measured) -> Vector:
        """Return θ_b + Σ (scale · w_i / d_i) · τ_i over the kept entries."""
        keys, divisors = measured[: len(measured) // 2], measured[len(measured) // 2 :]
        return task_vectors.summed(chunk, kept_by_draw(chunk, arguments, keys), arguments, divisors)


def measured_draws(inputs: Inputs, arguments: ByName) -> Measured:
    """Return the key of each source's draws, and then each source's divisor."""
    seed = int(arithmetic.one_number(arguments, "seed"))
    keys = tuple(arithmetic.draw_key(seed, inputs.place, model) for model in inputs.models)
    divisors = task_vectors.divisors_of(
        inputs, arguments, lambda chunk: kept_by_draw(chunk, arguments, keys)
    )
    return (*keys, *divisors)


def kept_by_draw(chunk: Chunk, arguments: ByName, keys: Measured) -> list[Vector]:
    """Return the task vectors, 0 where the draw drops the entry."""
    each = zip(
        chunk.task_vectors(), arithmetic.number_each(arguments, "density"), keys, strict=True
    )
    vectors = []
    for vector, density, key in each:
        keep = arithmetic.kept_entries(int(key), chunk.offset, vector, density)
        vectors.append(masked(vector, keep))
    return vectors
