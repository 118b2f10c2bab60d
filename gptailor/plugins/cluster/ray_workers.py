"""Workers of a Ray cluster: each holds the layers once, a lost one is replaced: `RayWorkers`."""

import logging
import os
import re
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import ray
from ray.exceptions import RayError, RayTaskError

from gptailor.checkpoint.write.tensors import available
from gptailor.evaluation.scores import Outcome, Race
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.searching.run.workers import Done, EvaluatePlans, Lost, Task, TaskOutcome, WorkerEvent

LOCAL = "local"
"""Instead of an address: a Ray of this machine's own, which ends with the search."""
_KNOCK = 10.0
"""Seconds in which a cluster has to answer."""
_REPLACED = 20
"""Workers that may be lost before a search ends: then it is not chance any more."""
_UNPLACED = 1800.0
"""Seconds that a cluster may have no room for any worker, while a machine is on its way."""


@final
class ClusterError(TailorError):
    """The cluster can't be reached, or loses one worker after another."""


@final
class Evaluating:
    """The actor of a worker, with an evaluator that is made there."""

    def __init__(self, make: Callable[[], EvaluatePlans]) -> None:
        self.evaluate = make()

    def ready(self) -> int:
        """Return the worker's process."""
        return os.getpid()

    def machine(self) -> str:
        """Return the name of the evaluator's device."""
        return str(getattr(self.evaluate, "machine", ""))

    def run(
        self, plans: Sequence[Plan], samples: int, stage: Stage, race: Race | None
    ) -> Iterator[tuple[int, tuple[Outcome, ...], float]]:
        """Yield each plan's place, outcomes and seconds as soon as they are ready."""
        begun = time.perf_counter()
        for place, outcomes in self.evaluate(plans, samples, stage=stage, race=race):
            now = time.perf_counter()
            yield place, outcomes, now - begun
            begun = now


@final
@dataclass(eq=False)
class _Worker:
    """An actor, and the task that it is at. Until it has `begun` that is awaited."""

    actor: Any
    begun: Any
    task: Task | None = None
    results: Any = None

    @property
    def awaited(self) -> Any:
        """The next result; None while the worker is idle."""
        return self.results if self.begun is None else self.begun


@final
class RayWorkers:
    """A context with this many actors. `make` gives an evaluator, and is called in each of them.

    Without a `count` there are as many as the cluster's GPUs suffice for if evaluators need this
    many `gpus` each, else one for each machine. Tasks wait for workers that have begun, so that the
    search goes on with the remaining ones where no machine replaces a lost one. All must be `like`
    the given machine, where time is measured. Raises ClusterError where the cluster can't be
    reached.
    """

    def __init__(
        self,
        make: Callable[[], EvaluatePlans],
        address: str,
        count: int | None,
        *,
        gpus: int = 0,
        like: str | None = None,
    ) -> None:
        self.make = make
        self.gpus = gpus
        self.like = like
        self._lost = 0
        _connect(address, count)
        self.count = count or _fitting(gpus)
        self.cpus = 0 if gpus else _cpus(self.count)
        self._workers: list[_Worker] = []
        self._waiting: deque[Task] = deque()

    def __enter__(self) -> "RayWorkers":
        self._workers = [self._worker() for _ in range(self.count)]
        return self

    def __exit__(self, *exception: object) -> None:
        ray.shutdown()

    def _worker(self) -> _Worker:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}  # Ray gives as many threads
        actor: Any = ray.remote(Evaluating).options(**options).remote(self.make)
        return _Worker(actor, actor.ready.remote())

    def submit(self, task: Task) -> None:
        """Begin a task on a free worker, or as soon as there is one."""
        self._waiting.append(task)
        self._deal()

    def _deal(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.awaited is None:
                worker.task = task = self._waiting.popleft()
                run = worker.actor.run.options(num_returns="streaming")
                worker.results = run.remote(task.plans, task.samples, task.stage, task.race)

    def next(self, longest: float | None = None) -> WorkerEvent | None:
        """Wait for the first event, but no longer than this many seconds.

        Raises ClusterError where for long no worker has a machine.
        """
        until = time.monotonic() + (_UNPLACED if longest is None else longest)
        while True:
            awaited = {id(w.awaited): w for w in self._workers if w.awaited is not None}
            results = [worker.awaited for worker in awaited.values()]
            remaining = max(0.0, until - time.monotonic())
            nobody = all(worker.begun is not None for worker in self._workers)
            timeout = None if longest is None and not nobody else remaining
            ready, _ = ray.wait(results, num_returns=1, timeout=timeout)
            if not ready and longest is None:
                minutes = _UNPLACED / 60
                raise ClusterError(f"the cluster has had no room for a worker for {minutes:g} min")
            if not ready:
                return None
            event = self._event_of(awaited[id(ready[0])])
            if event is not None:
                return event

    def _event_of(self, worker: _Worker) -> WorkerEvent | None:
        """Return a worker's event; None if it is not about its task."""
        try:
            if worker.begun is not None:
                ray.get(worker.begun)
                self._refuse_another(worker)
                worker.begun = None
                self._deal()
                return None
            assert worker.task is not None
            return TaskOutcome(worker.task.number, *ray.get(next(worker.results)))
        except StopIteration:
            assert worker.task is not None
            number, worker.task, worker.results = worker.task.number, None, None
            self._deal()
            return Done(number)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, TailorError | OSError):
                raise cause from error
            raise ClusterError(f"a worker failed: {_first(error)}") from error
        except RayError as error:  # its process, its machine or its message is lost
            return self._replace(worker, error)

    def _refuse_another(self, worker: _Worker) -> None:
        if self.like is None:
            return
        machine = ray.get(worker.actor.machine.remote())
        if machine != self.like:
            message = f"latency() can't be compared between '{self.like}' and '{machine}'"
            raise ClusterError(f"{message}; use workers with this machine's kind of processor")

    def _replace(self, worker: _Worker, error: RayError) -> WorkerEvent | None:
        if getattr(error, "actor_init_failed", False):
            raise ClusterError(f"a worker can't start: {_last(error)}") from error
        self._lost += 1
        if self._lost > _REPLACED:
            raise ClusterError(f"{self._lost} workers were lost; the last one: {_first(error)}")
        task = worker.task
        self._workers[self._workers.index(worker)] = self._worker()
        return None if task is None else Lost(task.number)


def _connect(address: str, count: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:  # explicit, else Ray takes a cluster from RAY_ADDRESS or its own notes
        where |= {"num_cpus": max(count or 1, available()), "include_dashboard": False}
    host = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    try:
        if host:  # where nobody listens Ray itself would try for minutes
            socket.create_connection((host[1], int(host[2])), timeout=_KNOCK).close()
        with warnings.catch_warnings():  # JAX warns of forks; Ray begins another program
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray is not available at '{address}': {_first(error)}") from error


def _fitting(gpus: int) -> int:
    """Return the number of workers with this many GPUs that fit; without GPUs, the machines."""
    if gpus:
        nodes = (node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
        counts = [int(count) for count in nodes]
        if not any(counts):
            raise ClusterError("the Ray cluster has no GPU; give --device cpu")
        fitting = sum(count // gpus for count in counts)
        if not fitting:
            most = f"the most that a machine has is {max(counts)}"
            raise ClusterError(f"no machine of the Ray cluster has {gpus} GPUs: {most}")
        free = ray.available_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        free_workers = int(free) // gpus  # others may have some: the search itself
        return min(fitting, free_workers) if free_workers else fitting
    return max(1, sum(count > 0 for count in _processors()))


def _cpus(count: int) -> int:
    """Return the processors of each of this many workers: the most that fit."""
    machines = _processors()
    for cpus in range(max(machines, default=1), 1, -1):
        if sum(processors // cpus for processors in machines) >= count:
            return cpus
    return 1


def _processors() -> list[int]:
    """Return the processors of each machine."""
    nodes = (node for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    return [int(node["Resources"].get("CPU", 0)) for node in nodes]


def _first(error: BaseException) -> str:
    lines = _lines(error)
    return lines[-1] if isinstance(error, RayTaskError) and lines else (lines or [repr(error)])[0]


def _last(error: BaseException) -> str:
    """Return the message that a worker raised; of our own errors without the type."""
    *_, ours = re.split(r"^gptailor\.[\w.]+: ", str(error), flags=re.MULTILINE)
    return ours.strip() if ours != str(error) else (_lines(error) or [repr(error)])[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]
