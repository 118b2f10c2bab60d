"""Measurements of processes: wall time, peak memory, and time to an output's first byte.

The measuring process must be small. On Linux a child's peak starts at its parent's memory, after
fork and after vfork, so this module imports no tensor library. A peak below the parent's own is
meaningless.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

POLL = 0.0005
"""Seconds between two checks for the first byte."""
BLOCK = 2**20
TOUCH = """\
import mmap, sys
size = int(sys.argv[1])
held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.madvise(mmap.MADV_HUGEPAGE)
block = bytes(2**21)
for _ in range(size // len(block)):
    held.write(block)
"""
SPARE = 2 * 10**9
"""Bytes of free memory that `touch` leaves free."""

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Run:
    """Seconds of the wall clock and of all cores, and peak resident bytes with mapped files."""

    seconds: float
    cpu: float
    peak: int


class Failed(Exception):  # noqa: N818 (the command did, not the benchmark)
    """Failure of a command, with the end of its output."""


def run(command: Sequence[str], log: Path) -> Run:
    """Run a command to its end, and write its output into `log`."""
    start = time.perf_counter()
    with _spawned(command, log) as pid:
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - start
    if status:
        code = os.waitstatus_to_exitcode(status)
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Failed(f"{' '.join(command)} ended with {code}:\n{said}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def touch(size: int, log: Path) -> None:
    """Write once to `size` bytes of free memory, or to all of it, and free them again.

    A virtual machine may return free memory to its host, and later writes to such pages are slow. A
    copy of 2 GB then takes 0.5 s or 9 s, depending on earlier processes. After this call all
    commands find memory as on a physical machine.
    """
    free = 1024 * _number(Path("/proc/meminfo"), "MemFree") - SPARE
    if (size := min(size, free)) > 0:
        run([sys.executable, "-c", TOUCH, str(size)], log)


def own_peak() -> int:
    """Return the peak resident bytes of this process."""
    return 1024 * _number(Path("/proc/self/status"), "VmHWM")


def _number(file: Path, wanted: str) -> int:
    """Return a number of the kernel by its name."""
    for line in file.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0])
    raise Failed(f"{file}: there is no '{wanted}'")


def first_write(command: Sequence[str], output: Path, log: Path) -> float:
    """Return seconds until a command's first byte is in a file of weights; then kill it.

    The file's size and blocks don't show writes, because its space may be reserved before.
    SEEK_DATA skips reserved space, and finds written bytes that aren't on the disk yet. The file is
    in a side folder `.NAME.partial-*` or in the output.
    """
    start = time.perf_counter()
    with _spawned(command, log) as pid:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if _has_data(output):
                return time.perf_counter() - start
            time.sleep(POLL)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise Failed(f"{' '.join(command)} ended before a first write was seen:\n{said}")


def _has_data(output: Path) -> bool:
    sides = output.parent.glob(f".{output.name}.partial-*/new/{WEIGHTS}")
    for file in (*sides, *output.glob(WEIGHTS)):
        with suppress(OSError):  # ENXIO: only reserved space; or a rename
            fd = os.open(file, os.O_RDONLY)
            try:
                os.lseek(fd, 0, os.SEEK_DATA)
                return True
            finally:
                os.close(fd)
    return False


@contextmanager
def _spawned(command: Sequence[str], log: Path) -> Iterator[int]:
    """Start a command's process, and end it on leaving."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    opened = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, log, opened, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    try:
        words = list(command)
        pid = os.posix_spawnp(words[0], words, environment, file_actions=actions, setpgroup=0)
    except OSError as error:
        raise Failed(f"{command[0]} can't be run: {error.strerror}") from error
    try:
        yield pid
    finally:
        with suppress(ChildProcessError, ProcessLookupError):  # it already ended
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


# ----------------------------------------------------------------------------- the page cache


def warm(folders: Iterable[Path]) -> None:
    """Read all files once."""
    buffer = bytearray(BLOCK)
    for file in _files(folders):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def cool(folders: Iterable[Path]) -> None:
    """Write all data to the disk, and remove the files from the page cache."""
    os.sync()
    for file in _files(folders):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _files(folders: Iterable[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in _files([folder]))


def weights_size(folder: Path) -> int:
    """Return the bytes of all weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS))
