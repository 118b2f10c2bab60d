"""The tutorial, from its first file to its last command, on a small model of thirty layers."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from gptailor.cli import main as cli
from tests.support.kitchen import files_and_commands
from tests.support.thorough import THOROUGH
from tests.support.tiny_bytes import model

pytest.importorskip("accelerate", reason="the package 'accelerate' is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # warnings of other people's trainers
]

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
LAYERS = 30
LESS = {
    "max_steps=60": "max_steps=1, use_cpu=True",
    "tokens 4096": "tokens 512",
    "trials 16": "trials 4",
    "[:600]": "[:90]",
    '"train": 240, "calibration": 80, "search": 16, "held_out": 32': (
        '"train": 8, "calibration": 12, "search": 10, "held_out": 4'
    ),
}
"""Smaller numbers for a test."""


SHORT = PAGE.partition("## 8. Search")[0]
"""As far as `make test` goes, without evaluations; `make thorough` does all of it."""


def made(folder: Path, name: str, text: str) -> None:
    """Write one of the page's files."""
    for much, little in LESS.items():
        text = text.replace(much, little)
    (folder / name).write_text(text)


def done(command: str) -> int:
    """Run a command of the page in this process."""
    words = shlex.split(command)
    if words[0] == "gptailor":
        return cli.run(words[1:])
    sys.argv = words[1:]
    runpy.run_path(words[1], run_name="__main__")
    return 0


def test_the_commands_of_the_tutorial_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    model(tmp_path / "models" / "base", layers=LAYERS)
    assert all(much in PAGE for much in LESS)
    ran = 0
    page = PAGE if THOROUGH else re.sub(r"^\$ gptailor eval .*$", "", SHORT, flags=re.MULTILINE)
    for name, text, commands in files_and_commands(page):
        if name:
            made(tmp_path, name, text)
        for command in commands:
            assert done(command) == 0, f"{command}\n{capsys.readouterr().err}"
            ran += 1
    assert ran >= (15 if THOROUGH else 6)
    last = {"found", "found.gguf", "report.html"} if THOROUGH else {"healed"}
    assert last <= {item.name for item in tmp_path.iterdir()}
