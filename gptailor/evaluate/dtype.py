"""What models compute in where nobody says: their own dtype, or float32 where that is quicker."""

import os
from collections.abc import Mapping

import torch

from gptailor.checkpoint.models import Opened

_HALVES = ("BF16", "F16")
_ROOM = 0.5
"""The part of this machine's memory that weights in float32 may take."""


def halves_are_quick(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 at least as fast as float32."""
    return torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def quick_dtype(models: Mapping[str, Opened], device: torch.device | str) -> torch.dtype | None:
    """float32 for models of 16 bits on a processor that has no such products; None: their own.

    Measured on one with AVX2 alone: 69 GFLOP/s in float32, 9 in bfloat16. Where the base in float32
    would take half of the memory, its own dtype stays.
    """
    if halves_are_quick(device) or "base" not in models:
        return None
    specs = [tensor.spec for tensor in models["base"].checkpoint.tensors.values()]
    matrices = [spec for spec in specs if len(spec.shape) > 1]
    if not matrices or any(spec.dtype not in _HALVES for spec in matrices):
        return None
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _ROOM
    wide = 2 * sum(spec.size for spec in specs)
    return torch.float32 if wide < room else None
