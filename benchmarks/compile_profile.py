"""Print the time of one `gptailor compile` by phase.

    python benchmarks/compile_profile.py PLAN OUTPUT

The command line runs within this process. A thread samples all other threads every few
milliseconds. It adds the time since the last sample to the phase of each: a system call, an import,
or the package of the running function. Sums over threads can exceed the wall clock.
"""

import argparse
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

START = time.perf_counter()

CALLS = {
    "preadv": "read", "pread": "read", "readinto": "read",
    "pwrite": "write", "pwritev": "write", "write": "write",
    "copy_file_range": "copy in the kernel", "sendfile": "copy in the kernel",
    "fsync": "sync", "fdatasync": "sync",
}  # fmt: skip
"""Phases of functions of `os`."""
FUNCTIONS = {"_reserve": "reserve room", "start": "start writing out"}
"""Phases of functions of gptailor that call the C library."""
PACKAGES = {
    "gptailor/program/compile": "planning",
    "gptailor/program": "arithmetic",
    "gptailor/checkpoint": "headers and bookkeeping",
    "gptailor": "planning",
}
"""Packages; the first one with the innermost function of gptailor counts."""
WAITING = (
    "threading.py",
    "queue.py",
    "concurrent/futures/thread.py",
    "concurrent/futures/_base.py",
)
PERIOD = 0.003
SHOWN = 8


class Sampler(threading.Thread):
    """A sampler that counts seconds by phase and by function until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phases: dict[str, float] = defaultdict(float)
        self.functions: dict[str, float] = defaultdict(float)
        self.calls: dict[int, str] = {}
        self.done = threading.Event()

    def run(self) -> None:
        """Sample all other threads until stopped."""
        last = time.perf_counter()
        while not self.done.wait(PERIOD):
            now = time.perf_counter()
            for ident, frame in sys._current_frames().items():
                if ident != self.ident:
                    self._count(ident, frame, now - last)
            last = now

    def _count(self, ident: int, frame: FrameType, seconds: float) -> None:
        phase, function = place(frame)
        phase = self.calls.get(ident, phase)
        self.phases[phase] += seconds
        if phase != "wait":
            self.functions[f"{function} ({phase})"] += seconds

    def watch(self, name: str, phase: str) -> None:
        """Wrap a function of `os` so that it records the threads in it."""
        call: Callable[..., Any] | None = getattr(os, name, None)
        if call is None:
            return

        def watched(*arguments: Any, **named: Any) -> Any:
            ident = threading.get_ident()
            self.calls[ident] = phase
            try:
                return call(*arguments, **named)
            finally:
                self.calls.pop(ident, None)

        setattr(os, name, watched)


def place(frame: FrameType) -> tuple[str, str]:
    """Return the phase of a thread by its stack, and the innermost function of gptailor."""
    waits = frame.f_code.co_filename.endswith(WAITING)
    found: tuple[str, str] | None = None
    step: FrameType | None = frame
    while step is not None:
        file, name = step.f_code.co_filename, step.f_code.co_name
        if "importlib._bootstrap" in file:
            return "imports", "import"
        if found is None and "/gptailor/" in file:
            module = file[file.rindex("/gptailor/") + 1 :].removesuffix(".py")
            found = _phase(module, name), f"{module.replace('/', '.')}:{name}"
        step = step.f_back
    phase, function = found or ("rest", frame.f_code.co_qualname)
    return ("wait" if waits else phase), function


def _phase(module: str, function: str) -> str:
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    return next(phase for package, phase in PACKAGES.items() if module.startswith(package))


def main(arguments: Sequence[str]) -> None:
    """Compile the plan, and print the time by phase."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args(arguments)
    sampler = Sampler()
    for name, phase in CALLS.items():
        sampler.watch(name, phase)
    sampler.start()
    from gptailor.cli.main import run

    code = run(["compile", str(given.plan), "--output", str(given.output)])
    wall = time.perf_counter() - START
    sampler.done.set()
    if code:
        sys.exit(code)
    user, system = os.times()[:2]
    print(f"wall {wall:.2f} s, user {user:.2f} s, system {system:.2f} s")
    for counted in (sampler.phases, sampler.functions):
        print("\n| phase | seconds of threads | of the wall clock |\n|---|---:|---:|")
        largest = sorted(counted.items(), key=lambda item: -item[1])[:SHOWN]
        for name, seconds in largest:
            print(f"| {name} | {seconds:.2f} | {seconds / wall:.0%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
