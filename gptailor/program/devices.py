"""Devices, dtypes and threads of torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

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
        raise TailorError(f"'{name}': merges run on 'cpu' or on 'cuda'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        available = f"there are {count}" if count else "there is no CUDA device"
        raise TailorError(f"'{name}' was asked for, and {available}")
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
        message = f"{processes} processes take one GPU each from 'cuda:{index}' on"
        raise TailorError(f"{message}, and there are {available}")
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
