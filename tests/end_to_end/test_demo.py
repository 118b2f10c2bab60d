"""The demo, as far as it shows without its model: its plans, its commands, its sections."""

import ast
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import gptailor
from gptailor.cli.main import cli
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import open_choices

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's names; its commands are written down in `ran`, and evaluations need no model."""
    path = list(sys.path)
    names = runpy.run_path(str(DEMO))
    monkeypatch.setattr(sys, "path", path)
    ran: list[list[str]] = []
    here = names["main"].__globals__
    here["ran"] = ran
    here["gptailor"] = lambda *words: ran.append([*words])
    here["continued"] = lambda models, base: None
    here["written"] = texts
    return here


def texts(folder: Path, base: Path, counts: dict[str, int], **_: Any) -> dict[str, Path]:
    """Texts without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {domain: folder / f"{domain}.jsonl" for domain in counts}
    for file in made.values():
        file.write_text('{"text": "a"}\n')
    return made


def test_sections_are_numbered_through() -> None:
    calls = (node for node in ast.walk(ast.parse(DEMO.read_text("utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say")  # fmt: skip
    headings = [one.args[0].value for one in sorted(calls, key=lambda call: call.lineno)]
    assert [head.split(".")[0] for head in headings] == [str(n + 1) for n in range(len(headings))]


def test_its_first_plan_is_a_cut_with_its_gap_bridged(demo: Any) -> None:
    plan = gptailor.loads(demo["SMALL"])
    assert [gap.after for gap in Resolved(plan, 30).gaps] == [13]
    assert len(plan.drops) == 4


def test_its_plans_and_commands_are_sound(demo: Any, tmp_path: Path) -> None:
    demo["heal_cut"](tmp_path, tmp_path / "smollm2")
    demo["stitch_family"](tmp_path, tmp_path / "smollm2")
    demo["search_family"](tmp_path, tmp_path / "smollm2")
    assert Resolved(gptailor.load(tmp_path / "healed.tailor"), 30).healing is not None
    assert open_choices(gptailor.load(tmp_path / "search" / "space.tailor")) == 3
    names = {words[0] for words in demo["ran"]}
    assert names == {"show", "compile", "eval", "search"}
    for name, *words in demo["ran"]:
        copied = shlex.split(shlex.join(words))
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, copied, resilient_parsing=False)
