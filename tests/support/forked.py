"""Real processes that compile and are disturbed at a chosen moment.

A process of this file imports all that compiling needs, once; each run is a fork of it, so that a
run takes milliseconds and may be killed like any other process. Moments are numbered: each change
of the file system that Python is about to make (its audit events), and each call of `progress`.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gptailor
import gptailor.output.compile
from gptailor.checkpoint.write.output_file import libc
from gptailor.cli import main as cli
from gptailor.plan.faults import TailorError
from tests.support.hollow import llama, write_hollow

ROOT = Path(__file__).parents[2]

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (−9 for a kill), its output, and how many moments it had."""

    code: int
    said: str
    moments: tuple[str, ...]


class Runs:
    """Starts runs in forks, one or several at the same time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def __call__(self, plan: Path, output: Path, **more: Any) -> Ended:
        """Compile, and wait for the end.

        `at` is a moment and `do` what happens then, a name in `ACTIONS`, with `where` for what;
        `after` are seconds after which the run is killed from outside. `lacking` are missing
        functions of the C library. With `cli`, the arguments of a command line, that runs
        instead of `gptailor.compile`.
        """
        (ended,) = self.together({"plan": str(plan), "output": str(output), **more})
        return ended

    def command(
        self, *arguments: str, folder: Path, environment: Mapping[str, str], seconds: int = 60
    ) -> tuple[int, str, str]:
        """Run the command line in a folder and an environment; exit code, output and errors."""
        with TemporaryDirectory() as said:
            files = [str(Path(said) / name) for name in ("stdout", "stderr")]
            settings = {"cwd": str(folder), "environment": dict(environment), "seconds": seconds}
            wanted = {"cli": arguments, "stdout": files[0], "stderr": files[1], **settings}
            (ended,) = self.together(wanted)
            output, errors = (Path(file).read_text() for file in files)
        return ended.code, output, errors

    def together(self, *wanted: dict[str, Any]) -> list[Ended]:
        """Several runs at the same time, with the cache of the test."""
        cache = os.environ["XDG_CACHE_HOME"]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([{"cache": cache, **run} for run in wanted]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that forks is gone"
        return [Ended(a["code"], a["said"], tuple(a["moments"])) for a in json.loads(answer)]


@contextmanager
def forking(*modules: str) -> Iterator[Runs]:
    """The process that forks; it has imported these modules too."""
    command = [sys.executable, str(Path(__file__)), *modules]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment
    ) as process:
        yield Runs(process)
        assert process.stdin is not None
        process.stdin.close()


# ------------------------------------------------------------------------------- what may happen


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate(_: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(_: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _fill(where: str) -> None:
    """Leave no free block on the disk of a folder."""
    fd = os.open(Path(where) / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError:
        os.close(fd)


def _replace(where: str) -> None:
    """Put another file of the same name and length into a file's place."""
    path = Path(where)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-64] + bytes(64))
    other.rename(path)


def _overwrite(where: str) -> None:
    """Write other bytes into a file, its length staying."""
    with Path(where).open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))


def _fail(number: str) -> None:
    raise OSError(int(number), os.strerror(int(number)))


def _until(where: str) -> None:
    """Wait until a file is there; not for ever, should the test be wrong."""
    end = time.monotonic() + 20
    while not Path(where).exists() and time.monotonic() < end:
        time.sleep(0.001)


ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": _kill,
    "terminate": _terminate,
    "interrupt": _interrupt,
    "fill": _fill,
    "unlink": os.unlink,
    "truncate": lambda where: os.truncate(where, 4096),
    "replace": _replace,
    "overwrite": _overwrite,
    "fail": _fail,
    "wait": _until,
}


# ------------------------------------------------------------------------------------- the forks


class Moments:
    """Counts them, and does the chosen action at one of them."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.at = wanted.get("at")
        self.action = ACTIONS[wanted.get("do", "kill")]
        self.where = str(wanted.get("where", ""))
        self.lacking = wanted.get("lacking", ())
        self.seen: list[str] = []
        self.lock = threading.RLock()
        self.busy = False

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy:  # by an action of this function
            return
        if event == "ctypes.dlsym" and args[1] in self.lacking:
            raise AttributeError(args[1])
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            self.pass_by(event)

    def pass_by(self, name: str) -> None:
        with self.lock:
            self.seen.append(name)
            due = len(self.seen) - 1 == self.at
        if due:
            self.busy = True
            try:
                self.action(self.where)
            finally:
                self.busy = False


def _run(wanted: dict[str, Any], answer: int) -> None:
    """In the fork: compile, and say how it went."""
    moments = Moments(wanted)
    code, message = 0, ""
    if wanted.get("stderr"):
        os.dup2(os.open(wanted["stderr"], os.O_WRONLY | os.O_CREAT, 0o600), 2)
    os.environ["XDG_CACHE_HOME"] = wanted["cache"]
    if "environment" in wanted:
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["cwd"])
        signal.alarm(wanted["seconds"])
    if "cli" in wanted:
        shown = wanted.get("stdout", os.devnull)
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT, 0o600), 1)
        sys.argv = ["gptailor", *wanted["cli"]]
        sys.addaudithook(moments.audit)
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
    else:
        names = ("force", "dtype", "locking")
        options = {name: wanted[name] for name in names if name in wanted}
        means = {name: wanted[name] for name in ("shard_size", "threads") if name in wanted}
        plan = gptailor.load(wanted["plan"])
        sys.addaudithook(moments.audit)
        try:
            gptailor.compile(
                plan,
                wanted["output"],
                on_event=lambda _: moments.pass_by("progress"),
                compute=gptailor.ComputeOptions(**means),
                **options,
            )
        except (TailorError, OSError, TypeError) as error:
            code, message = getattr(error, "exit_code", 99), str(error) or repr(error)
    moments.busy = True
    os.write(answer, json.dumps({"code": code, "said": message, "moments": moments.seen}).encode())
    os._exit(code)


def _start(wanted: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            _run(wanted, writing)
        except BaseException as error:  # noqa: BLE001 (a fork must never go back into the loop)
            outcome = {"code": 98, "said": repr(error), "moments": []}
            os.write(writing, json.dumps(outcome).encode())
        os._exit(98)
    os.close(writing)
    if "after" in wanted:
        time.sleep(wanted["after"])
        os.kill(pid, signal.SIGKILL)
    return pid, reading


def _end(pid: int, reading: int) -> dict[str, Any]:
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    outcome = json.loads(text) if text else {"said": "", "moments": []}
    return {**outcome, "code": code}


def _compile_once() -> None:
    """Compile once, so that forked processes need not do a first compilation's extra work."""
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        sizes = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
        write_hollow(base, *llama(**sizes), 2)
        (base / "tokenizer.json").write_text("{}")
        plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1', folder=folder)
        gptailor.compile(
            plan, base.with_name("out"), compute=gptailor.ComputeOptions(shard_size=6_000)
        )
    libc.cache_clear()  # a fork may have to do without one of its functions
    assert threading.active_count() == 1


def main() -> None:
    """Fork for each line that is read."""
    for name in sys.argv[1:]:
        __import__(name)
    _compile_once()
    assert "huggingface_hub" not in sys.modules, "it would know this environment, not a fork's"
    gc.collect()
    gc.freeze()
    # An orphan of a test that failed would keep a small file system busy.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    for line in sys.stdin:
        started = [_start(wanted) for wanted in json.loads(line)]
        print(json.dumps([_end(*item) for item in started]), flush=True)


if __name__ == "__main__":
    main()
