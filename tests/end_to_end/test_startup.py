"""The commands that need no arithmetic load no library that has some: they start in a blink."""

import subprocess
import sys
from pathlib import Path

import pytest

from gptailor.cli.main import COMMANDS, run

HEAVY = ("torch", "jax", "numpy", "transformers", "safetensors", "rich")
TEXT = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
L2.mlp from math
drop L4
tokenizer from math
"""
MERGE = "merge(L3 base, L3 math, 0.5)\nscale L0 by 0.9\n"


def imported(*arguments: str, cwd: Path) -> set[str]:
    """The top-level modules that a command of its own process has imported in the end."""
    script = (
        "import sys\n"
        "from gptailor.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print('\\n@', code, *sorted(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, *names = done.stdout.rpartition("@")[2].split()
    assert code == "0", done.stderr
    return set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["check", "plan.tailor"],
        ["fmt", "--check", "plain.tailor"],
        ["show", "plan.tailor"],
        ["show", "--program", "plan.tailor"],
        ["json", "plan.tailor"],
        ["schema"],
        ["completion", "bash"],
        ["compile", "plan.tailor", "-o", "{out}", "--dry-run"],
        ["compile", "plain.tailor", "-o", "{out}"],
    ],
    ids=" ".join,
)
def test_no_command_imports_what_it_does_not_need(
    family: Path, tmp_path: Path, arguments: list[str]
) -> None:
    if COMMANDS.problem(arguments[0]):
        pytest.skip("the command's plugin was removed")
    head = TEXT.replace('"./', f'"{family}/')
    (tmp_path / "plan.tailor").write_text(head + MERGE)
    (tmp_path / "plain.tailor").write_text(head)
    assert run(["fmt", str(tmp_path / "plain.tailor")]) == 0
    words = [word.format(out=tmp_path / "out") for word in arguments]
    names = imported(*words, cwd=tmp_path)
    assert names.isdisjoint(HEAVY)
    assert (tmp_path / "out").exists() == (words[0] == "compile" and "--dry-run" not in words)


@pytest.mark.slow
def test_a_merge_imports_numpy_alone(family: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.tailor").write_text(TEXT.replace('"./', f'"{family}/') + MERGE)
    names = imported("compile", "plan.tailor", "-o", str(tmp_path / "out"), cwd=tmp_path)
    assert "numpy" in names
    assert names.isdisjoint({"torch", "jax", "jaxtyping", "transformers", "rich"})


def test_a_plan_alone_is_checked_without_validators_of_pydantic(tmp_path: Path) -> None:
    (tmp_path / "plan.tailor").write_text(TEXT + MERGE)
    names = imported("check", "--alone", "plan.tailor", cwd=tmp_path)
    assert "pydantic" in names
    assert "email" not in names  # pydantic looks for its plugins, by email, when it builds one


@pytest.mark.parametrize("command", [[], ["compile"], ["eval"], ["search"], ["pick"]], ids=" ".join)
def test_the_help_does_not_even_read_the_grammar(tmp_path: Path, command: list[str]) -> None:
    names = imported(*command, "--help", cwd=tmp_path)
    assert names.isdisjoint({"lark", "pydantic"})


def test_importing_the_package_imports_nothing() -> None:
    script = (
        "import sys; before = set(sys.modules); import gptailor\n"
        "print(*{n.partition('.')[0] for n in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True, cwd="/"
    )
    assert set(done.stdout.split()) <= {
        "gptailor",
        "importlib",
        "warnings",
        "typing",
        "types",
    } | set(sys.stdlib_module_names)
