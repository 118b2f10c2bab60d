"""Processes that heal one plan together, each on its own device: `ProcessGroup`.

A launcher such as torchrun starts the same command in each of them. The first process does all the
work but healing. The others wait for its healing, take part in it (`join`, `shared`), and are done.
torch.distributed adds up their gradients (NCCL on GPUs, Gloo on CPUs).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from gptailor.plan.doors import Door
from gptailor.plan.faults import TailorError
from gptailor.program.devices import CPU

_T = TypeVar("_T")
SharedWork = Callable[["ProcessGroup"], object]
"""The work of a process in a group."""


@final
@dataclass(frozen=True)
class ProcessGroup:
    """`size` processes; this one has the number `rank`, and computes on `device`.

    Without others its methods do nothing.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """True for the process that keeps results and reports progress."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """Return this process' part of the numbers from `start` up to `stop`."""
        count = stop - start
        first, last = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return start + first, start + last

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            with collective():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def sum(self, number: float) -> float:
        """Return the sum of all processes' numbers, in float64."""
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        self.add_up([total])
        return float(total)

    def gathered(self, value: _T) -> list[_T]:
        """Return the values of all processes, in order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with collective():
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return the result of the first process."""
        return self.gathered(make() if self.first else None)[0]  # type: ignore[return-value]


ALONE = ProcessGroup()


@contextmanager
def collective() -> Iterator[None]:
    """Turn the error of a group that lost a process into a message."""
    try:
        yield
    except RuntimeError as error:
        message = "another process of the group ended"
        help_ = "give --memory, or start fewer processes"
        raise TailorError(f"{message}; if it had too little memory, {help_}") from error


# ------------------------------------------------------------------------------ started together


class Launched(Protocol):
    """The processes that a launcher started, before they are a group; this one is the first."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def group(self, work: SharedWork, device: torch.device) -> AbstractContextManager[ProcessGroup]:
        """Form the group, this process on `device`, and have the others do the same work."""

    def leave(self) -> None:
        """Tell the other processes that nothing is healed."""


LAUNCHERS: Door[Callable[[], Launched | None]] = Door("launchers", "launcher", FunctionType, {})
"""Functions that join the processes that a launcher started: `environment`.

They return None in a process that is not the first, after its part of the first one's healing.
Raise TailorError if the processes can't meet.
"""

_launched: ContextVar[Launched | None] = ContextVar("_launched", default=None)


def join() -> bool:
    """Join the processes that a launcher started; return whether this is the first one.

    Raises TailorError if the environment that torch.distributed reads is wrong.
    """
    launched = LAUNCHERS.required("environment", "healing in several processes", "cluster")()
    _launched.set(launched)
    return launched is not None


def leave() -> None:
    """Tell the other processes that nothing more is healed."""
    if (launched := _launched.get()) is not None:
        launched.leave()
        _launched.set(None)


def processes() -> int:
    """Return the number of processes that heal together."""
    launched = _launched.get()
    return 1 if launched is None else launched.size


@contextmanager
def shared(work: SharedWork, device: torch.device, most: int) -> Iterator[ProcessGroup]:
    """Have the other processes do the same work, on neighbouring GPUs; yield the group of all.

    `work` is pickled. The group has this process alone if there are more than `most` processes.
    """
    launched = _launched.get()
    if launched is None or launched.size > most:
        yield ALONE
        return
    _launched.set(None)
    with launched.group(work, device) as group:
        yield group
