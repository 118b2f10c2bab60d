"""Workers of a Ray cluster: each holds the layers once, a lost one is replaced: `RayWorkers`."""

import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gptailor.evaluate.outcome import Outcome
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.search.run.workers import Done, Found, Judge, Lost, Task, WorkerEvent

LOCAL = "local"
"""Instead of an address: a Ray of this machine's own, which ends with the search."""
_KNOCK = 10.0
"""Seconds in which a cluster has to answer."""
_REPLACED = 20
"""Workers that may be lost before a search ends: then it is not chance any more."""


@final
class ClusterError(TailorError):
    """The cluster can't be had, or loses one worker after another."""


@final
class Evaluating:
    """What runs in a worker: a judge, made there."""

    def __init__(self, make: Callable[[], Judge]) -> None:
        self.judge = make()

    def ready(self) -> int:
        """The worker's process."""
        return os.getpid()

    def run(
        self, plans: Sequence[Plan], share: float, how: Mapping[str, Any]
    ) -> Iterator[tuple[int, tuple[Outcome, ...], float]]:
        """Each plan's place and outcomes as soon as they are there, and what that took."""
        begun = time.perf_counter()
        for place, outcomes in self.judge(plans, share, **how):
            now = time.perf_counter()
            yield place, outcomes, now - begun
            begun = now


@final
@dataclass(eq=False)
class _Worker:
    """An actor, and the task that it is at."""

    actor: Any
    task: int | None = None
    results: Any = None


@final
class RayWorkers:
    """A context with so many actors. `make` gives a judge, and is called in each of them.

    Without a `count` there is one for each GPU if judges need one, else one for each machine.
    Raises ClusterError where the cluster can't be had.
    """

    def __init__(
        self, make: Callable[[], Judge], address: str, count: int | None, *, gpus: bool = False
    ) -> None:
        self.make = make
        self.gpus = gpus
        self._lost = 0
        _connect(address, count)
        self.count = count or _fitting(gpus)
        self._workers: list[_Worker] = []

    def __enter__(self) -> "RayWorkers":
        self._workers = [_Worker(self._actor()) for _ in range(self.count)]
        return self

    def __exit__(self, *exception: object) -> None:
        ray.shutdown()

    def _actor(self) -> Any:
        options = {"num_cpus": 0 if self.gpus else 1, "num_gpus": 1 if self.gpus else 0}
        return ray.remote(Evaluating).options(**options).remote(self.make)

    def submit(self, task: Task) -> None:
        """Begin a task on a free worker."""
        worker = next(worker for worker in self._workers if worker.task is None)
        run = worker.actor.run.options(num_returns="streaming")
        worker.results = run.remote(task.plans, task.share, task.how)
        worker.task = task.number

    def next(self, longest: float | None = None) -> WorkerEvent | None:
        """Wait for what comes first, but no longer than so many seconds."""
        busy = {id(worker.results): worker for worker in self._workers if worker.task is not None}
        results = [worker.results for worker in busy.values()]
        ready, _ = ray.wait(results, num_returns=1, timeout=longest)
        if not ready:
            return None
        worker = busy[id(ready[0])]
        assert worker.task is not None
        number = worker.task
        try:
            found = ray.get(next(worker.results))
        except StopIteration:
            worker.task = worker.results = None
            return Done(number)
        except RayActorError as error:
            return self._replace(worker, number, error)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, TailorError | OSError):
                raise cause from error
            raise ClusterError(f"a worker failed: {_first(error)}") from error
        return Found(number, *found)

    def _replace(self, worker: _Worker, number: int, error: RayActorError) -> WorkerEvent:
        self._lost += 1
        if self._lost > _REPLACED:
            raise ClusterError(f"{self._lost} workers were lost; the last one: {_first(error)}")
        worker.actor, worker.task, worker.results = self._actor(), None, None
        return Lost(number)


def _connect(address: str, count: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        where = {"num_cpus": count, "include_dashboard": False}
    known = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    try:
        if known:  # where nobody listens Ray itself would try for minutes
            socket.create_connection((known[1], int(known[2])), timeout=_KNOCK).close()
        with warnings.catch_warnings():  # JAX warns of forks; what Ray begins is another program
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray can't be had at '{address}': {_first(error)}") from error


def _fitting(gpus: bool) -> int:
    """The cluster's GPUs, or its machines."""
    if gpus:
        found = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if not found:
            raise ClusterError("the Ray cluster has no GPU; give --device cpu")
        return found
    return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))  # type: ignore[no-untyped-call]


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, RayTaskError) and lines else (lines or [repr(error)])[0]
