"""Task vectors whose entries are dropped at random, and the others rescaled."""

from typing import final

import torch

from gptailor.methods import arithmetic
from gptailor.methods.arithmetic import ByName, Chunk, Inputs, Kernel, Measured, Vector


@final
class Dare(Kernel):
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

    name = "dare"

    def measure(self, inputs: Inputs, given: ByName) -> Measured:
        """The key of each source's draws."""
        seed = int(arithmetic.one_number(given, "seed"))
        return tuple(arithmetic.draw_key(seed, inputs.place, model) for model in inputs.models)

    def combine(self, chunk: Chunk, given: ByName, measured: Measured) -> Vector:
        """θ_b + Σ (scale / density) · τ_i of the entries that are kept."""
        density = arithmetic.one_number(given, "density")
        vectors = []
        for vector, key in zip(chunk.task_vectors(), measured, strict=True):
            keep = arithmetic.kept_entries(
                int(key), chunk.offset, len(vector), density, vector.device
            )
            vectors.append(torch.where(keep, vector, 0.0))
        return arithmetic.base_moved(
            chunk, vectors, [arithmetic.one_number(given, "scale") / density] * len(vectors)
        )
