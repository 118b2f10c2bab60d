"""The default dtype of computation: the models' own, or float32 where that is quicker."""

from collections.abc import Mapping

import torch

from gptailor.checkpoint.models import Opened
from gptailor.program.devices import memory_of

_SLOW = {"cpu": ("BF16", "F16"), "cuda": ("BF16",)}
"""The stored dtypes that are slow on a device without quick bfloat16, by its type."""
_AMPERE = 8, 0
"""The compute capability from which CUDA devices multiply bfloat16; older ones emulate it."""
_ROOM = 0.5
"""The part of the device's memory that weights in float32 may take."""


def halves_are_quick(device: torch.device | str) -> bool:
    """Return whether a device multiplies bfloat16 at least as fast as float32.

    A CUDA device that this machine lacks, such as a worker's, counts as quick.
    """
    place = torch.device(device)
    if place.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    here = place.type == "cuda" and (place.index or 0) < torch.cuda.device_count()
    return not here or torch.cuda.get_device_capability(place) >= _AMPERE


def healing_dtype(models: Mapping[str, Opened], device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device multiplies it faster than float32, else float32.

    With experts it is float32, as transformers sums them in the weights' own dtype.
    """
    specs = [tensor.spec for tensor in models["base"].checkpoint.tensors.values()]
    stacked = (len(spec.shape) == 3 and min(spec.shape) > 1 for spec in specs)
    if any(stacked) or any(".experts." in spec.name for spec in specs):
        return torch.float32
    return torch.bfloat16 if halves_are_quick(device) else torch.float32


def quick_dtype(models: Mapping[str, Opened], device: torch.device | str) -> torch.dtype | None:
    """Return float32 for 16-bit models on a device without fast bfloat16; None: own dtype.

    A processor with AVX2 alone reached 69 GFLOP/s in float32 and 9 in bfloat16. A GPU without fast
    bfloat16 is fast in float16. The base keeps its own dtype if it would take half of the device's
    memory in float32.
    """
    if halves_are_quick(device) or "base" not in models:
        return None
    specs = [tensor.spec for tensor in models["base"].checkpoint.tensors.values()]
    matrices = [spec for spec in specs if len(spec.shape) > 1]
    place = torch.device(device)
    if not matrices or any(spec.dtype not in _SLOW[place.type] for spec in matrices):
        return None
    room = memory_of(place) * _ROOM
    wide = 2 * sum(spec.size for spec in specs)
    return torch.float32 if wide < room else None
