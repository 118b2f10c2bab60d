"""Processes that begin with torch, transformers and JAX imported: forks of one that imported them.

As `python -c` runs a script, with arguments and a current folder of its own; but importing takes
seconds a process, and a fork milliseconds. Tests of imports, the environment, hash seeds or threads
begin a real process.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = (
    "transformers.models.llama.modeling_llama",
    "gptailor.searching.search",
    "gptailor.cli.search",
    "tests.searching.landscape",  # keeps what JAX compiles
)

_SETTINGS = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # read at the import of torch

AS_MAIN = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Child:
    """One that was started, with the methods of `subprocess.Popen`."""

    def __init__(self, ask: Callable[..., int], script: str, arguments: list[str], cwd: Path):
        self._ask = ask
        self._said = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (until it has ended)
        self.returncode: int | None = None
        fds = [file.fileno() for file in self._said]
        wanted = {"script": script, "arguments": arguments, "cwd": str(cwd)}
        wanted["cache"] = os.environ["XDG_CACHE_HOME"]
        self.pid = ask(wanted, fds)

    def poll(self) -> int | None:
        """The exit code, if it has ended; −9 for a kill."""
        if self.returncode is None:
            status = self._ask({"ended": self.pid})
            self.returncode = os.waitstatus_to_exitcode(status) if status >= 0 else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def error(self) -> str:
        """Standard error so far."""
        return self._text(1)

    def communicate(self) -> tuple[str, str]:
        """Standard output and standard error, once it has ended."""
        while self.poll() is None:
            time.sleep(0.002)
        texts = self._text(0), self._text(1)
        for file in self._said:
            file.close()
        return texts

    def _text(self, which: int) -> str:
        fd = self._said[which].fileno()  # its position is the child's too
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()


class Preloaded:
    """The process that has imported it all."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def start(self, script: str, *arguments: object, cwd: Path) -> Child:
        """Run a script in a fork of it."""
        return Child(self._ask, script, [*map(str, arguments)], cwd)

    def run(self, file: Path, *arguments: object, cwd: Path = ROOT) -> tuple[int, str, str]:
        """Run a file as `python FILE` does, to its end; exit code, output and errors."""
        child = self.start(AS_MAIN, file, *arguments, cwd=cwd)
        output, errors = child.communicate()
        assert child.returncode is not None
        return child.returncode, output, errors

    def _ask(self, wanted: dict[str, Any], fds: "list[int] | tuple[()]" = ()) -> int:
        socket.send_fds(self._connection, [json.dumps(wanted).encode()], fds)
        answer = self._connection.recv(16)
        assert answer, "the process that forks is gone"
        return int(answer)


@contextmanager
def preloaded() -> Iterator[Preloaded]:
    """Start it; its forks are killed with it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.preloaded", str(its.fileno())]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **_SETTINGS, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
    ):
        its.close()
        with mine:
            yield Preloaded(mine)


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each script, and report the forks' ends; return a request in a fork."""
    while True:
        text, fds, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        if not text:
            os._exit(0)
        wanted = json.loads(text)
        if "ended" in wanted:
            pid, status = os.waitpid(wanted["ended"], os.WNOHANG)
            connection.send(str(status if pid else -1).encode())
        elif pid := os.fork():
            connection.send(str(pid).encode())
            for fd in fds:
                os.close(fd)
        else:
            connection.close()
            for fd, own in zip(fds, (1, 2), strict=True):
                os.dup2(fd, own)
                os.close(fd)
            return dict(wanted)


def main() -> None:
    """Import, and serve."""
    for name in MODULES:
        import_module(name)
    warnings.filterwarnings("ignore", "os.fork\\(\\) was called", RuntimeWarning)
    gc.collect()
    gc.freeze()
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as `forked` ends orphans
    os.chdir(wanted["cwd"])
    os.environ["XDG_CACHE_HOME"] = wanted["cache"]
    sys.argv = ["-c", *wanted["arguments"]]
    exec(compile(wanted["script"], "<script>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
