"""One trial that went wrong, as a value: never a score."""

from dataclasses import dataclass
from typing import Literal

import torch

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")
"""What a `RuntimeError` says that comes from an allocator: of the CPU, of CUDA, of cuBLAS."""


@dataclass(frozen=True)
class Failure:
    """Why a plan has no score: no room for it, numbers that are none, or an exception in it."""

    reason: Literal["memory", "nan", "error"]
    message: str


def failure(error: Exception) -> Failure:
    """The exception as a value, with its type and its words."""
    words = str(error).strip() or "no message"
    reason: Literal["memory", "error"] = "memory" if _from_allocator(error) else "error"
    return Failure(reason, f"{type(error).__name__}: {words}")


def _from_allocator(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)
