"""Jobs done by several threads, so that a failure is the same one whatever their timing: `Crew`."""

import os
from collections.abc import Callable, Iterable
from threading import Event, Lock
from typing import ParamSpec, final

_Given = ParamSpec("_Given")
_Job = Callable[[], None]


@final
class Dismissed(Exception):  # noqa: N818 (no error: another job failed, and this one was let go)
    """The crew stopped while a job was under way."""


@final
class Crew:
    """So many threads; with one, jobs run in the caller's."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"{threads} threads can do nothing")
        self.threads = threads or available()
        self._stopped = Event()
        self._lock = Lock()

    def do(self, jobs: Iterable[_Job]) -> None:
        """Do all jobs, begun in their order.

        After an exception no other job is begun, those under way end, and of all that failed the
        first in order is raised. After an interrupt those under way end at their next `told`.
        """
        if self.threads == 1:
            for job in jobs:
                job()
            return
        from concurrent import futures as cf  # noqa: PLC0415 (5 ms that one thread need not pay)

        pool = cf.ThreadPoolExecutor(self.threads, thread_name_prefix="gptailor")
        try:
            futures = [pool.submit(job) for job in jobs]
            cf.wait(futures, return_when=cf.FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
        except BaseException:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
        for future in futures:
            if not future.cancelled():
                future.result()

    def told(self, listener: Callable[_Given, None]) -> Callable[_Given, None]:
        """The listener, for one thread at a time; raises `Dismissed` once the crew has stopped."""

        def one_at_a_time(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
            if self._stopped.is_set():
                raise Dismissed
            with self._lock:
                listener(*args, **kwargs)

        return one_at_a_time


def available() -> int:
    """The cores that this process may use."""
    knows = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if knows else os.cpu_count() or 1
