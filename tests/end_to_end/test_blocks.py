"""All pages, as GitHub shows them: links lead somewhere, and a test reads each block of code.

The check of a block depends on its language. `BY_PAGE` has pages with tests of their own; `SHOWN`
has blocks that nothing can check, with the reason.
"""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest
import yaml

import gptailor
from gptailor.cli.main import cli
from tests.support.pages import Block, anchors, blocks, links, pages

ROOT = Path(__file__).parents[2]
BLOCKS = [block for page in pages() for block in blocks(page)]

BY_PAGE = {
    "docs/commands.md": ("test_docs.py, which pastes what commands say", {"text"}),
    "docs/cookbook.md": ("test_cookbook.py, which runs all of it", {"tailor", "yaml"}),
    "gptailor/plan/faults.md": ("test_faults.py, which reads each", {"tailor", "json"}),
}
"""Pages with a test of their own, and the languages of the blocks that it reads."""

SHOWN = {
    "lisp": "settings of Emacs, which isn't on the machine",
    "lua": "settings of Neovim, which isn't either",
    "text": "what a command printed, a drawing, or a form",
}
"""Languages that nothing can check."""

FOREIGN = {
    "lint-imports": "a linter's",
    "mypy": "a linter's",
    "pre-commit": "its own",
    "pytest": "its own",
    "ruff": "a linter's",
    "llama-cli": "llama.cpp's",
    "ollama": "its own",
    "make": "its targets are looked up",
    "podman": "its own",
    "pip": "extras are looked up",
    "python": "files and options are looked up",
}
"""Programs of console blocks that aren't gptailor."""


def shown(block: Block) -> str:
    return block.place


def of(*languages: str) -> list[Block]:
    """The blocks in a language that have no test of their own by their page."""
    return [
        block
        for block in BLOCKS
        if block.language in languages
        if block.language not in BY_PAGE.get(block.page, ("", set()))[1]
    ]


# ------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", pages())
def test_links_of_a_page_exist_on_github(page: str) -> None:
    dead = []
    for _, to in links(page):
        parts = urlsplit(to)
        if parts.scheme:
            assert parts.scheme in ("https", "mailto"), to
            assert parts.scheme != "https" or re.fullmatch(r"[\w.-]+\.[a-z]+", parts.netloc), to
            continue
        path = (ROOT / page).parent / unquote(parts.path) if parts.path else ROOT / page
        name = str(path.resolve().relative_to(ROOT))
        if not path.exists() or (parts.fragment and parts.fragment not in anchors(name)):
            dead.append(to)
    assert dead == []


# ------------------------------------------------------------------------------------------ blocks

CHECKS: dict[str, str] = {
    "tailor": "test_docs.py reads it, and refuses what is marked so",
    "console": "test_commands_of_a_page_exist",
    "python": "test_python_examples_call_existing_functions, and test_docs.py runs >>> lines",
    "bash": "test_bash_parses_a_shell_block",
    "sh": "test_bash_parses_a_shell_block",
    "json": "test_data_can_be_read",
    "yaml": "test_data_can_be_read",
    "toml": "test_data_can_be_read",
}


def test_each_block_is_of_a_kind_that_is_checked() -> None:
    unknown = [
        f"{block.place}: {block.language or 'no language'}"
        for block in BLOCKS
        if block.language not in {*CHECKS, *SHOWN, *BY_PAGE.get(block.page, ("", ()))[1]}
    ]
    assert unknown == []
    assert len(BLOCKS) > 200


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line behind `$ `, and of what follows a pipe or `&&`."""
    lines = re.sub(r"\\\n\s*(?:> )?", "", block.text).splitlines()
    for line in lines:
        if line.startswith("$ "):
            lexer = shlex.shlex(line[2:], posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in (*lexer, ";"):
                if re.fullmatch(r"[|&;]+", word):
                    yield words
                    words = []
                else:
                    words.append(word)


@pytest.mark.parametrize("block", of("console"), ids=shown)
def test_commands_of_a_page_exist(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    results = list(commands(block))
    assert results, "no line begins with '$ '"
    for words in results:
        program = Path(words[0]).name
        if program == "gptailor":
            understood(words[1:], monkeypatch)
        else:
            assert program in FOREIGN, words
            files = {item.marks: item.text for item in blocks(block.page)}
            LOOKED_UP.get(program, lambda *_: None)(words[1:], files)


def understood(words: list[str], patched: pytest.MonkeyPatch) -> None:
    """click takes the arguments, whether or not their files are there."""
    words = words[: words.index(">")] if ">" in words else words
    context = cli.make_context("gptailor", [], resilient_parsing=True)
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version", "-V", "-h")
        return
    command = cli.get_command(context, words[0])
    assert command is not None, words[0]
    if "--help" in words or "-h" in words:
        return
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            patched.setattr(parameter.type, "exists", False)
    command.make_context(words[0], words[1:], parent=context)


def a_target(words: list[str], _: dict[str, str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def an_installation(words: list[str], _: dict[str, str]) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))
    for asked in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(asked.split(",")) <= extras


def a_script(words: list[str], files: dict[str, str]) -> None:
    """A file of the page's, or one of ours with options that it has; or a text of Python."""
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] != "-m":
        source = files.get(words[0]) or (ROOT / words[0]).read_text("utf-8")
        for option in (word for word in words[1:] if word.startswith("--")):
            assert re.search(rf"{option}\b", source), option


LOOKED_UP: dict[str, Callable[[list[str], dict[str, str]], None]] = {
    "make": a_target,
    "pip": an_installation,
    "python": a_script,
}


@pytest.mark.parametrize("block", [b for b in of("python") if ">>>" not in b.text], ids=shown)
def test_python_examples_call_existing_functions(block: Block) -> None:
    """Imports of ours are found, and each call of a verb has arguments that the verb takes."""
    known: dict[str, Any] = {"gptailor": gptailor}
    nodes = list(ast.walk(ast.parse(block.text)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gptailor."):
            module = importlib.import_module(str(node.module))
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in nodes:
        called = _called(node.func, known) if isinstance(node, ast.Call) else None
        if called is not None and not any(
            isinstance(argument, ast.Starred) for argument in node.args
        ):
            named = {str(word.arg): word.value for word in node.keywords}
            inspect.signature(called).bind(*node.args, **named)


def _called(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return the called object, if it belongs to gptailor."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = known.get(node.value.id)
        return getattr(owner, node.attr) if inspect.ismodule(owner) else None
    return None


@pytest.mark.parametrize("block", of("bash", "sh"), ids=shown)
def test_bash_parses_a_shell_block(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("block", of("json", "yaml", "toml"), ids=shown)
def test_data_can_be_read(block: Block) -> None:
    read = {"json": json.loads, "toml": tomllib.loads}.get(block.language, yaml.safe_load_all)
    assert [*read(block.text)]
