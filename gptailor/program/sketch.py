"""Sketches: a few numbers that show how far apart two tensors are."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.methods.arithmetic import draw_key, kept_entries

_BUCKETS = 64
"""Numbers of a sketch: the distance between two has an error of some 18 %."""
_SUMMED = 2**20
"""Entries that are summed at once; a multiple of `_BUCKETS`."""


def sketch(tensor: Shaped[Tensor, "..."]) -> tuple[float, ...]:
    """Return sums of a tensor's entries, each with a sign that depends on its number alone.

    A few float64 numbers show the distance of two tensors that may differ: the Euclidean distance
    of two sketches is about the distance of the tensors (a count sketch, Charikar and others 2002).
    The entry of number i is in the sum i modulo `_BUCKETS`.
    """
    flat = tensor.detach().reshape(-1).cpu()
    key = draw_key(0, "sketch", "")
    sums = torch.zeros(_BUCKETS, dtype=torch.float64)
    for start in range(0, len(flat), _SUMMED):
        part = flat[start : start + _SUMMED].double()
        signs = kept_entries(key, start, part, 0.5)
        signed = torch.where(signs, part, -part)
        signed = torch.nn.functional.pad(signed, (0, -len(signed) % _BUCKETS))
        sums += signed.reshape(-1, _BUCKETS).sum(0)
    return tuple(float(number) for number in sums)
