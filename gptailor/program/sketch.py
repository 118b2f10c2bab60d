"""A few numbers that tell how far two tensors are apart, for where their bytes may differ."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.methods.arithmetic import draw_key, kept_entries

BUCKETS = 64
"""Numbers of a sketch: the distance between two has an error of some 18 %."""
_SUMMED = 2**20
"""Entries that are summed at once; a multiple of `BUCKETS`."""


def sketch(tensor: Shaped[Tensor, "..."]) -> tuple[float, ...]:
    """Sums of a tensor's entries, each with a sign that depends on its number alone, in float64.

    The entry of number i is in the sum i modulo `BUCKETS`. The Euclidean distance of two tensors'
    sketches is about that of the tensors (a count sketch, Charikar and others 2002).
    """
    flat = tensor.detach().reshape(-1).cpu()
    key = draw_key(0, "sketch", "")
    sums = torch.zeros(BUCKETS, dtype=torch.float64)
    for start in range(0, len(flat), _SUMMED):
        part = flat[start : start + _SUMMED].double()
        signs = kept_entries(key, start, len(part), 0.5, part.device)
        signed = torch.where(signs, part, -part)
        signed = torch.nn.functional.pad(signed, (0, -len(signed) % BUCKETS))
        sums += signed.reshape(-1, BUCKETS).sum(0)
    return tuple(float(number) for number in sums)
