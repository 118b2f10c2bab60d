"""Processes that heal one plan together, each on its own device: `ProcessGroup`.

A launcher such as torchrun starts the same command in each of them, with the environment that
torch.distributed reads. The first process does all the work but healing. The others wait for its
healing, take part in it (`join`, `shared`), and are done. torch.distributed adds up their gradients
(NCCL on GPUs, Gloo on CPUs).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from gptailor.plan.faults import TailorError
from gptailor.program.devices import CPU, devices_of

_T = TypeVar("_T")
SharedWork = Callable[["ProcessGroup"], object]
"""The work of a process in a group."""

_LONGEST_WAIT = timedelta(days=1)
"""How long a process waits for the others, which may read a long text first."""
_MEETING = timedelta(minutes=5)
"""How long a process waits for another one that only has to answer."""
_POLL_SECONDS = 0.1


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
            with _collective():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def sum(self, number: float) -> float:
        """Return the sum of all processes' numbers, in float64."""
        if self.size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        self.add_up([total])
        return float(total)

    def gathered(self, value: _T) -> list[_T]:
        """Return the values of all processes, in order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _collective():
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what the first process makes."""
        if self.size == 1:
            return make()
        return self.gathered(make() if self.first else None)[0]  # type: ignore[return-value]


ALONE = ProcessGroup()


@contextmanager
def _collective() -> Iterator[None]:
    """Turn the error of a group that lost a process into a message."""
    try:
        yield
    except RuntimeError as error:
        message = "another process of the group ended"
        help_ = "if its memory did not suffice, give --memory or start fewer processes"
        raise TailorError(f"{message}; {help_}") from error


# ------------------------------------------------------------------------------ started together


@final
@dataclass(frozen=True)
class _Launched:
    """The processes that a launcher started, before they are a group, and the store they share."""

    rank: int
    size: int
    store: Any

    @contextmanager
    def group(self, first: torch.device) -> Iterator[ProcessGroup]:
        """Form the group, whose first process computes on `first`; leave it in the end.

        One process alone raises an error, which it reports. The others end in silence.
        """
        device = devices_of(first, self.size)[self.rank]
        if device.type != "cpu":
            torch.cuda.set_device(device)
        try:
            with _collective():
                dist.init_process_group(
                    dist.get_default_backend_for_device(device),
                    store=self.store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=_LONGEST_WAIT,
                )
            yield ProcessGroup(self.rank, self.size, device)
        except Exception:
            if not self._reports():
                raise SystemExit(1) from None
            raise
        except BaseException:  # Ctrl-C and SIGTERM reach all processes
            if self.rank:
                raise SystemExit(130) from None
            self._reports()
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _reports(self) -> bool:
        """Return whether this process is the first one that reports an error."""
        try:
            return int(self.store.add("reported", 1)) == 1
        except RuntimeError:  # the store ended with the first process
            return False

    def wait(self, names: list[str], longest: timedelta) -> None:
        """Wait for entries of the store. Signals still end this process meanwhile."""
        end = time.monotonic() + longest.total_seconds()
        while not self.store.check(names):
            if time.monotonic() > end:
                raise TailorError(f"expected {self.size} processes, and one doesn't answer")
            time.sleep(_POLL_SECONDS)

    def heal(self) -> None:
        """Take part in the first process' healing, if it heals."""
        try:
            self.wait(["healing"], _LONGEST_WAIT)
            device = self.store.get("healing").decode()
            self.store.set(f"ready {self.rank}", "")
        except RuntimeError:  # the store ended with the first process
            return
        except KeyboardInterrupt:  # which the first process reports
            raise SystemExit(130) from None
        if device:
            with self.group(torch.device(device)) as group:
                work: Any = group.gathered(None)[0]  # the first process has the work
                work(group)


_launched: ContextVar[_Launched | None] = ContextVar("_launched", default=None)


def join() -> bool:
    """Join the processes that a launcher started; return whether this is the first one.

    Any other process takes part in the healing of the first one before that. Raises TailorError if
    the environment that torch.distributed reads is wrong.
    """
    if not dist.is_available():
        raise TailorError("this build of torch has no torch.distributed; start one process")
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
    except (ValueError, RuntimeError) as error:
        raise TailorError(f"the processes of torch.distributed can't meet: {error}") from error
    launched = _Launched(rank, size, store)
    if rank:
        launched.heal()
        return False
    if os.environ.get("LOCAL_WORLD_SIZE", str(size)) != str(size):
        raise TailorError(f"expected {size} processes on one machine, got several machines")
    _launched.set(launched)
    return True


def leave() -> None:
    """Tell the other processes that nothing more is healed."""
    if (launched := _launched.get()) is not None:
        launched.store.set("healing", "")
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
    launched.store.set("healing", str(device))
    launched.wait([f"ready {rank}" for rank in range(1, launched.size)], _MEETING)
    with launched.group(device) as group:
        group.from_first(lambda: work)
        yield group
