"""Processes that heal one plan together, each on its own device: `ProcessGroup`, `run_together`.

They are processes of torch.multiprocessing, and torch.distributed adds up their gradients (NCCL on
GPUs, Gloo on CPUs).
"""

import os
import pickle
import queue
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.program.devices import CPU, devices_of

_T = TypeVar("_T")
SharedWork = Callable[["ProcessGroup", OnEvent], object]
"""The work of a process in a group."""

_LONGEST_WAIT = timedelta(days=1)
"""How long a process waits for the others, which may read a long text first."""
_POLL_SECONDS = 0.1
_LATER_SECONDS = 2
"""How long a process keeps its own error back while another's end, its cause, is noticed."""


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
        dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what the first process makes."""
        if self.size == 1:
            return make()
        return self.gathered(make() if self.first else None)[0]  # type: ignore[return-value]


ALONE = ProcessGroup()


def run_together(
    work: SharedWork, device: torch.device, processes: int, on_event: OnEvent = ignore_events
) -> None:
    """Run the same work in each of several new processes, and wait for all of them.

    `work` is pickled. Events of the first process are reported. An error in any process ends all
    of them, and is raised here.
    """
    if not dist.is_available():
        raise TailorError("this build of torch has no torch.distributed; heal in one process")
    threads = max(1, torch.get_num_threads() // processes)
    devices = devices_of(device, processes)
    with tempfile.TemporaryDirectory(prefix="gptailor-group-") as folder:
        messages = mp.get_context("spawn").Queue()
        arguments = pickle.dumps(work), devices, threads, Path(folder), messages
        context = start_processes(  # type: ignore[no-untyped-call]
            _run, arguments, processes, join=False, daemon=True, start_method="spawn"
        )
        try:
            done = False
            while not done:
                done = context.join(_POLL_SECONDS)
                _report(messages, on_event)
        except ProcessExitedException as error:
            _report(messages, on_event)  # the error itself, if the process could still send it
            number, at = error.error_index + 1, devices[error.error_index]
            how = error.signal_name or f"exit code {error.exit_code}"
            message = f"process {number} of {processes} on {at} ended with {how}"
            help_ = "if its memory did not suffice, give --memory or fewer --processes"
            raise TailorError(f"{message}; {help_}") from None
        finally:
            for process in context.processes:
                process.kill()
                process.join()


def _report(messages: Any, on_event: OnEvent) -> None:
    """Report waiting events; raise the first error among them."""
    while True:
        try:
            message = messages.get_nowait()
        except queue.Empty:
            return
        if isinstance(message, Exception):
            raise message
        on_event(message)


def _run(
    rank: int,
    work: bytes,
    devices: list[torch.device],
    threads: int,
    folder: Path,
    messages: Any,
) -> None:
    """Join the group in a new process and do the work."""
    torch.set_num_threads(threads)
    device = devices[rank]
    if device.type != "cpu":
        torch.cuda.set_device(device)
    on_event = messages.put if rank == 0 else ignore_events
    try:
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=len(devices),
            timeout=_LONGEST_WAIT,
        )
        pickle.loads(work)(ProcessGroup(rank, len(devices), device), on_event)
        dist.destroy_process_group()
        status = 0
    except Exception as error:  # noqa: BLE001 (it is raised in the process that waits)
        if not isinstance(error, TailorError):  # perhaps only "connection closed by peer"
            time.sleep(_LATER_SECONDS)
        messages.put(_picklable(error))
        status = 1
    messages.close()
    messages.join_thread()  # sent before this process ends
    # A thread of Gloo may still release a tensor. At the interpreter's own end that aborts
    # (https://github.com/pytorch/pytorch/pull/179291), though the work is done.
    os._exit(status)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever an error's own class does)
        return TailorError(f"{type(error).__name__}: {error}")
    return error
