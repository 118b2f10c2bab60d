"""Processes that a launcher such as torchrun started, which heal one plan: `join_launched`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist

from gptailor.evaluation.fits.heal.process_group import ProcessGroup, SharedWork, collective
from gptailor.plan.faults import TailorError
from gptailor.program.devices import devices_of

_LONGEST_WAIT = timedelta(days=1)
"""How long a process waits for the others, which may read a long text first."""
_MEETING = timedelta(minutes=5)
"""How long a process waits for another one that only has to answer."""
_POLL_SECONDS = 0.1


@final
@dataclass(frozen=True)
class LaunchedProcesses:
    """The processes that a launcher started, before they are a group, and the store they share."""

    rank: int
    size: int
    store: Any

    @contextmanager
    def group(self, work: SharedWork, device: torch.device) -> Iterator[ProcessGroup]:
        """Form the group, this process on `device`, and have the others do the same work.

        `work` is pickled.
        """
        self.store.set("healing", str(device))
        self.wait([f"ready {rank}" for rank in range(1, self.size)], _MEETING)
        with self._formed(device) as group:
            group.from_first(lambda: work)
            yield group

    def leave(self) -> None:
        """Tell the other processes that nothing is healed."""
        self.store.set("healing", "")

    @contextmanager
    def _formed(self, first: torch.device) -> Iterator[ProcessGroup]:
        """Form the group. Its first process computes on `first`; leave it in the end.

        One process alone raises an error, which it reports. The others end in silence.
        """
        device = devices_of(first, self.size)[self.rank]
        if device.type != "cpu":
            torch.cuda.set_device(device)
        try:
            with collective():
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
        """Return whether this process is the first process that reports an error."""
        try:
            return int(self.store.add("reported", 1)) == 1
        except RuntimeError:  # the store ended with the first process
            return False

    def wait(self, names: list[str], longest: timedelta) -> None:
        """Wait for entries of the store. Signals still end this process meanwhile."""
        end = time.monotonic() + longest.total_seconds()
        while not self.store.check(names):
            if time.monotonic() > end:
                raise TailorError(f"expected {self.size} processes, but one doesn't answer")
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
            with self._formed(torch.device(device)) as group:
                work: Any = group.gathered(None)[0]  # the first process has the work
                work(group)


def join_launched() -> LaunchedProcesses | None:
    """Return the processes that a launcher started; None if this is not the first of them.

    Such a process takes part in the healing of the first one before that. Raises TailorError if the
    environment that torch.distributed reads is wrong.
    """
    if not dist.is_available():
        raise TailorError("this build of torch has no torch.distributed; start one process")
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
    except (ValueError, RuntimeError) as error:
        raise TailorError(f"the processes of torch.distributed can't connect: {error}") from error
    launched = LaunchedProcesses(rank, size, store)
    if rank:
        launched.heal()
        return None
    if os.environ.get("LOCAL_WORLD_SIZE", str(size)) != str(size):
        raise TailorError(f"expected {size} processes on one machine, got several machines")
    return launched
