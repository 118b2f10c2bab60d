"""Processes, measured: wall time, peak memory, and when the first byte of an output is written.

The process that measures must be small. Linux starts a child's peak with what the process that
spawned it had, be it by fork or by vfork, so nothing here imports a tensor library. A peak that is
not above our own says nothing.
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
"""Seconds between two looks for the first byte."""
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
"""Bytes of free memory that are left alone."""

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Run:
    """Seconds of the wall clock and of all cores, and the most bytes resident, mapped files too."""

    seconds: float
    cpu: float
    peak: int


class Failed(Exception):  # noqa: N818 (the command did, not the benchmark)
    """A command ended with another code than 0; with the end of what it said."""


def run(command: Sequence[str], log: Path) -> Run:
    """Run a command to its end; what it prints goes into `log`."""
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
    """Write to so many bytes of free memory once, as far as there are, and free them again.

    A virtual machine may hand free memory back to its host, and pay for each page that it writes to
    after that: a file of 2 GB is copied in 0.5 s or in 9 s then, by who came before. After this all
    commands find the memory that a machine of metal would give them.
    """
    free = 1024 * _number(Path("/proc/meminfo"), "MemFree") - SPARE
    if (size := min(size, free)) > 0:
        run([sys.executable, "-c", TOUCH, str(size)], log)


def own_peak() -> int:
    """The most bytes that this process has had resident."""
    return 1024 * _number(Path("/proc/self/status"), "VmHWM")


def _number(file: Path, wanted: str) -> int:
    """A number that the kernel tells under a name."""
    for line in file.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0])
    raise Failed(f"{file}: there is no '{wanted}'")


def first_write(command: Sequence[str], output: Path, log: Path) -> float:
    """Seconds until the command's first byte is in a file of weights; then it is killed.

    The file's size and blocks don't tell, since its room may be reserved before. SEEK_DATA does: it
    passes over what is reserved, and finds what was written though it isn't on the disk yet. The
    file is looked for in a side folder `.NAME.partial-*`, and in the output.
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
        with suppress(OSError):  # ENXIO: nothing but room; or it was just renamed
            fd = os.open(file, os.O_RDONLY)
            try:
                os.lseek(fd, 0, os.SEEK_DATA)
                return True
            finally:
                os.close(fd)
    return False


@contextmanager
def _spawned(command: Sequence[str], log: Path) -> Iterator[int]:
    """The process of a command; on leaving, whatever happened, it is gone."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    opened = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, log, opened, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    try:
        pid = os.posix_spawnp(command[0], command, environment, file_actions=actions, setpgroup=0)
    except OSError as error:
        raise Failed(f"{command[0]} can't be run: {error.strerror}") from error
    try:
        yield pid
    finally:
        with suppress(ChildProcessError, ProcessLookupError):  # it was waited for
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
    """Have the kernel forget the files' contents; all that is unwritten is on the disk before."""
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
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in _files([folder]))


def weights_size(folder: Path) -> int:
    """Bytes of all weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob(WEIGHTS))
