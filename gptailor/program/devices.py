"""Devices and threads of torch, and dtypes: named dtypes, and a device's quick dtypes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import torch

from gptailor.checkpoint.models import Opened
from gptailor.methods.arrays import FLOAT_NAMES
from gptailor.plan.faults import TailorError, listed

CPU = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """Return the device of that name. Raises TailorError for a missing device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TailorError(f"'{name}' is not a device") from error
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        raise TailorError(f"expected 'cpu' or 'cuda' for merges, got '{name}'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        available = f"the machine has {count}" if count else "no CUDA device is available"
        raise TailorError(f"can't use '{name}': {available}")
    return device


def devices_of(first: torch.device, processes: int) -> list[torch.device]:
    """Return the device of each of several processes: neighbouring GPUs, or always the CPU.

    Raises TailorError if there are fewer GPUs from the first one on.
    """
    if first.type == "cpu":
        return [first] * processes
    index = first.index or 0
    available = torch.cuda.device_count() - index
    if available < processes:
        message = f"{processes} processes need one GPU each from 'cuda:{index}' on"
        raise TailorError(f"{message}, but the machine has {available}")
    return [torch.device(first.type, index + number) for number in range(processes)]


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def dtype_of(named: str | torch.dtype | None) -> torch.dtype | None:
    """Return the float dtype of that name, such as `bfloat16`; None stays None.

    Raises TailorError for another name or dtype.
    """
    name = str(named).removeprefix("torch.")
    if named is not None and name not in FLOAT_NAMES.values():
        raise TailorError(f"expected a dtype of {listed(FLOAT_NAMES.values(), 'or')}, got '{name}'")
    dtype: torch.dtype | None = None if named is None else getattr(torch, name)
    return dtype


_LOCK = Lock()
_at_work: list[int] = []  # torch's threads before the first of those that are at work


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Have torch use the caller's thread alone, also for large tensors.

    Its number of threads belongs to the process; it is as before once all that are within left.
    """
    with _LOCK:
        _at_work.append(torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            before = _at_work[0]
            _at_work.pop()
            if not _at_work:
                torch.set_num_threads(before)


_SLOW = {"cpu": ("BF16", "F16"), "cuda": ("BF16",)}
"""The stored dtypes that are slow on a device without quick bfloat16, by its type."""
_AMPERE = 8, 0
"""The least compute capability of CUDA devices that multiply bfloat16; older ones emulate it."""
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
