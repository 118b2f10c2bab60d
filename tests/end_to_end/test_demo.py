"""The demos without their model: their plans and commands are valid."""

import ast
import json
import runpy
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.cli.main import cli
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import open_choices

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FOUND = """tailor 1
model base = "../smollm2"
model arithmetic = base + "../arithmetic"
model conversation = base + "../conversation"
model python = base + "../python"
whole from arithmetic, conversation, python by task_arithmetic(0.6)
drop L3..L9
bridge on "../calibration.jsonl" tokens 4096
"""

Demo = Callable[[str], dict[str, Any]]


@pytest.fixture
def ran() -> list[list[str]]:
    """The arguments of gptailor's commands, in order."""
    return []


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, ran: list[list[str]]) -> Demo:
    """Load a demo. Its commands are recorded and not run, and its texts need no tokenizer."""

    def load(name: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "demo", raising=False)
        here: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))["main"].__globals__
        fakes = {"texts": texts, "texts_of": texts, "continued": continued, "gptailor": record}
        here.update((own, fake) for own, fake in fakes.items() if own in here)
        return here

    def record(*words: str, captured: bool = False) -> str:
        ran.append([*words])
        if words[0] == "search":
            run_ = Path(words[words.index("-o") + 1])
            run_.mkdir(parents=True)
            (run_ / "best.tailor").write_text(FOUND)
        return evaluation(*words) if captured else ""

    return load


def texts(folder: Path, counts: Mapping[str, int], **_: Any) -> list[Path]:
    """Write texts of one letter."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{domain}.jsonl" for domain in counts]
    for file in made:
        file.write_text('{"prompt": "a", "response": "b"}\n')
    return made


def continued(models: Mapping[str, Path], base: Path) -> None:
    """Continue nothing."""


def evaluation(*words: str) -> str:
    """Return the JSON of an `eval` whose scores count from 0."""
    targets = list(words[1 : words.index("-O")])
    targets += [f"{target}, uncut" for target in targets if target.endswith("best.tailor")]
    objectives = [words[n + 1] for n, word in enumerate(words) if word == "-O"]
    pairs = [(target, objective) for target in targets for objective in objectives]
    return json.dumps({
        "results": [{"target": target, "objective": objective, "score": float(n)}
                    for n, (target, objective) in enumerate(pairs)],
        "targets": [{"target": target, "parameters": 10**8} for target in targets],
    })  # fmt: skip


def headings(name: str) -> list[str]:
    """Return the headings that a script prints, in order."""
    calls = (node for node in ast.walk(ast.parse((EXAMPLES / name).read_text("utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say")  # fmt: skip
    return [one.args[0].value for one in sorted(calls, key=lambda call: call.lineno)]


@pytest.mark.parametrize("name", ["demo.py", "demo_full.py"])
def test_sections_are_numbered_through(name: str) -> None:
    numbers = [head.split(".")[0] for head in headings(name)]
    assert numbers == [str(n + 1) for n in range(len(numbers))]


def test_the_demo_runs_valid_commands_on_valid_plans(
    demo: Demo, ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = demo("demo.py")
    here["shrink"](tmp_path)
    here["write_texts"](tmp_path)
    here["search_family"](tmp_path)
    here["heal_found"](tmp_path)
    here["evaluate"](tmp_path)
    small = gptailor.load(tmp_path / "small.tailor")
    assert [gap.after for gap in Resolved(small, 30).gaps] == [13]
    assert open_choices(gptailor.load(tmp_path / "space.tailor")) == 2
    healing = Resolved(gptailor.load(tmp_path / "run" / "healed.tailor"), 30).healing
    assert healing is not None
    assert [text.teacher for text in healing.texts] == list(here["SPECIALISTS"])
    named = [words[0] for words in ran]
    assert named == ["compile", "generate", "search", "compile", "eval"]
    assert_are_valid(ran)
    *_, conclusion = lines = capsys.readouterr().out.splitlines()
    assert conclusion == (
        "The healed plan has 0% fewer weights than the base, and a loss 20.000 nats higher than the"
        " base's and 4.000 nats lower than the uncut merge's."
    )
    table = lines[-9:-2]
    assert [row[:32].rstrip() for row in table][:4] == ["base", *here["SPECIALISTS"]]
    assert table[0].split() == ["base", "200", "MB", "0.000", "1.000", "2.000", "1.000", "300%"]
    assert "24.000" in table[4], "the uncut plan's row follows all targets in the JSON"


def test_the_full_demo_runs_valid_commands_on_valid_plans(
    demo: Demo, ran: list[list[str]], tmp_path: Path
) -> None:
    here = demo("demo_full.py")
    here["heal_cut"](tmp_path, tmp_path / "smollm2")
    here["stitch_family"](tmp_path, tmp_path / "smollm2")
    here["search_family"](tmp_path, tmp_path / "smollm2")
    assert Resolved(gptailor.load(tmp_path / "cut-healed.tailor"), 30).healing is not None
    assert open_choices(gptailor.load(tmp_path / "search" / "space.tailor")) == 3
    assert {words[0] for words in ran} == {"show", "compile", "eval", "search"}
    assert_are_valid(ran)


def assert_are_valid(commands: list[list[str]]) -> None:
    """Let click parse each command without running it."""
    parent = cli.make_context("gptailor", [], resilient_parsing=True)  # has the names of --help
    for name, *words in commands:
        copied = shlex.split(shlex.join(words))
        command = cli.get_command(parent, name)
        assert command is not None
        command.make_context(name, copied, parent=parent)
