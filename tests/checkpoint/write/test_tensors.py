"""Jobs by several threads: order, failures, interrupts."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from gptailor.checkpoint.write.tensors import Crew, Dismissed, available


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads: int) -> None:
    done: list[int] = []
    Crew(threads).do([lambda i=i: done.append(i) for i in range(50)])
    assert sorted(done) == list(range(50))


def test_one_thread_is_the_callers() -> None:
    seen: list[threading.Thread] = []
    Crew(1).do([lambda: seen.append(threading.current_thread())])
    assert seen == [threading.current_thread()]


def test_jobs_run_at_the_same_time() -> None:
    meet = threading.Barrier(3, timeout=30)
    Crew(3).do([meet.wait] * 3)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_failure_in_order_is_raised(threads: int) -> None:
    """Also where a later one comes earlier; and what follows it is not begun."""
    done: list[int] = []

    def job(number: int) -> None:
        if number in {3, 4}:
            time.sleep(0.05 * (5 - number))
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match=r"^3$"):
        Crew(threads).do([lambda i=i: job(i) for i in range(500)])
    assert len(done) < 500


def to_the_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def without_waking_the_caller() -> None:
    """Interrupt as if just before the caller waits: its wait doesn't end by the signal."""
    time.sleep(0.1)  # by now the caller waits
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.mark.parametrize("interrupt", [to_the_process, without_waking_the_caller])
def test_an_interrupt_stops_the_other_threads(interrupt: Callable[[], None]) -> None:
    crew = Crew(2)
    begun = threading.Event()
    counts: list[int] = []
    tell = crew.exclusive(counts.append)

    def endless() -> None:
        begun.set()
        while True:
            time.sleep(0.001)
            tell(1)

    def ctrl_c() -> None:
        begun.wait(30)
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        crew.do([endless, ctrl_c])
    with pytest.raises(Dismissed):
        tell(1)


def test_one_thread_at_a_time_calls_the_listener() -> None:
    crew = Crew(4)
    inside = 0
    most = 0

    def listener(_: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1

    tell = crew.exclusive(listener)
    crew.do([lambda: tell(1)] * 40)
    assert most == 1


def test_a_crew_has_a_thread_for_each_core() -> None:
    assert Crew().threads == available() >= 1
