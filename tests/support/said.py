"""The exit code and the output of a command of gptailor."""

import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gptailor.cli import main as cli


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


def in_process(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = cli.run([*map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Said(code, captured.out, captured.err)

    return call


def reading(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with `stdin` as its standard input."""

    def call(*arguments: object, stdin: str | bytes = b"") -> Said:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return run(*arguments)

    return call
