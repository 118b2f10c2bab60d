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
from gptailor.evaluation.scores import PerSample
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import open_choices

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FOUND = """tailor 1
model base = "./smollm2"
model arithmetic = base + "./arithmetic"
model conversation = base + "./conversation"
model python = base + "./python"
whole from arithmetic, conversation, python by task_arithmetic(0.6)
drop {}
bridge on "./calibration.jsonl" tokens 2048
"""
SMALL = 'tailor 1\nmodel base = "./smollm2"\ngguf q4_1\n'
CUTS = {"27": "L13..L15", "26": "L13..L16", "24": "L4, L9, L14..L17", "22": "L3..L10"}
"""Cuts of a search's plans by the most layers that are left; the first two are middle blocks."""

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
        if words[0] == "shrink":
            Path(words[words.index("--plan") + 1]).write_text(SMALL)
        if words[0] == "pick":
            layers, file = (words[words.index(option) + 1] for option in ("--layers", "-o"))
            Path(file).write_text(FOUND.format(CUTS[layers]))
        return evaluation(*words) if captured and words[0] == "eval" else ""

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
    """Return the JSON of an `eval` with scores that count from 0, with two samples each."""
    targets = list(words[1 : words.index("-O")])
    if "--uncut" in words:
        targets += [f"{target}, uncut" for target in targets if "found" in target]
    objectives = [words[n + 1] for n, word in enumerate(words) if word == "-O"]
    pairs = [(target, objective) for target in targets for objective in objectives]
    return json.dumps({
        "results": [{"target": target, "objective": objective, "score": float(n),
                     "each": {"sums": [n, n + 1], "counts": [1, 1]}}
                    for n, (target, objective) in enumerate(pairs)],
        "targets": [{"target": target, "parameters": 10**8} for target in targets],
    })  # fmt: skip


def headings(name: str) -> list[str]:
    """Return the headings that a script prints, in order."""
    calls = (node for node in ast.walk(ast.parse((EXAMPLES / name).read_text("utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say")  # fmt: skip
    return [item.args[0].value for item in sorted(calls, key=lambda call: call.lineno)]


@pytest.mark.parametrize("name", ["demo.py", "demo_full.py"])
def test_sections_are_numbered_through(name: str) -> None:
    heads = headings(name)
    assert max(map(len, heads)) <= 80
    numbers = [head.split(".")[0] for head in heads]
    assert numbers == [str(n + 1) for n in range(len(numbers))]


def test_the_demo_runs_valid_commands_on_valid_plans(
    demo: Demo, ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = demo("demo.py")
    here["shrink"](tmp_path)
    here["write_texts"](tmp_path)
    here["search_sizes"](tmp_path)
    here["compare"](tmp_path)
    here["heal_found"](tmp_path)
    here["evaluate"](tmp_path)
    assert open_choices(gptailor.load(tmp_path / "space.tailor")) == 1
    healing = Resolved(gptailor.load(tmp_path / "healed.tailor"), 30).healing
    assert healing is not None
    assert [text.teacher for text in healing.texts] == list(here["SPECIALISTS"])
    assert [words[0] for words in ran] == [
        "shrink", "generate", "search", "pick", "pick", "pick", "eval", "compile", "eval"
    ]  # fmt: skip
    assert_are_valid(ran)
    *_, last, conclusion = lines = capsys.readouterr().out.splitlines()
    paths = ("/family/", str(tmp_path))  # longer than in a checkout
    assert max(len(line) for line in lines if not any(path in line for path in paths)) <= 80
    assert f"{last} {conclusion}" == (
        "The healed plan has 0% fewer weights than the base, and a loss 8.000 nats higher than the "
        "base's and 4.000 nats lower than the uncut merge's."
    )
    table = lines[-7:-3]
    assert [row[:15].rstrip() for row in table][::3] == ["base", "found, healed"]
    assert table[0].split() == ["base", "200", "MB", "0.000", "1.000", "2.000", "1.000", "300%"]
    assert "12.000" in table[1], "the uncut plan's row follows all targets in the JSON"


def test_plans_by_hand_have_the_size_and_the_repair_of_the_found_plan(
    demo: Demo, ran: list[list[str]], tmp_path: Path
) -> None:
    here = demo("demo.py")
    rows = [here["alike"](tmp_path, size) for size in (4, 6)]
    plans = [[gptailor.load(plan) for plan in row] for row in rows]
    drops = [[[drop.position for drop in plan.drops] for plan in row] for row in plans]
    assert drops[0] == [[13, 14, 15, 16], [25, 26, 27, 28], [13, 14, 15, 16]]
    assert [cut[::5] for cut in drops[1]] == [[4, 17], [23, 28], [12, 17]]
    result, late, middle = plans[0]
    assert result.bridges == late.bridges == middle.bridges
    recipes = [Resolved(plan, 30).slots[0].recipes[None].recipe for plan in plans[0]]
    assert recipes[0] == recipes[1] == recipes[2]
    assert [words[:2] for words in ran] == [["pick", str(tmp_path / "run")]] * 2


def test_the_comparison_of_the_demo_is_of_pairs(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    here = demo("demo.py")
    plans = [PerSample((base, base + 1.0), (1, 1)) for base in (1.0, 2.0, 1.5)]
    near = [plans[0], PerSample((1.2, 1.7), (1, 1)), plans[1]]
    lost = [plans[1], *plans[::2]]
    here["print_comparison"]([(4, 248.0, plans), (6, 234.0, near), (8, 220.0, lost)])
    *_, first, second, third, _, words = capsys.readouterr().out.splitlines()
    assert first.split() == [
        "4", "layers", "248", "MB", "1.500", "2.500", "2.000", "-0.500", "±", "0.000"
    ]  # fmt: skip
    assert second.split()[-3:] == ["+0.050", "±", "0.250"]
    assert third.split()[-3:] == ["+1.000", "±", "0.000"]
    assert (
        words == "The search: better at 1, a tie at 1, worse at 1 of 3 sizes (a tie: two errors)."
    )


def test_texts_of_other_sources_have_three_kinds_and_are_not_empty(demo: Demo) -> None:
    here = demo("demo.py")
    texts = [*here["other_sources"]()]
    assert texts[0].startswith("The old mill")
    assert len(texts) == len(set(texts)) >= 20
    assert min(map(len, texts)) > 60
    assert texts[-1].count(" + ") == 8


def test_a_long_command_of_the_demo_is_one_command_of_short_lines(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gptailor", "eval", *(f"plan-{n}.tailor" for n in range(20)), "-O", 'nll("a b")']
    demo("demo.py")["print_command"](words)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert shlex.split(printed.removeprefix("$").replace("\\\n", " ")) == words


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
