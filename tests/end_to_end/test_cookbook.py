"""Every recipe of docs/cookbook.md: its files are written, its commands run, one after another."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from gptailor.cli import main as cli
from tests.support.kitchen import lay_out

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text(encoding="utf-8")
FEWER = {"tokens 50000": "tokens 1024", "trials 60": "trials 8"}
"""Smaller numbers for a small model on a busy machine."""


class Recipe(NamedTuple):
    """A section: its heading, its files by name, its commands."""

    heading: str
    files: dict[str, str]
    commands: list[str]


def recipes() -> list[Recipe]:
    results = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        files = {
            match[1]: match[2]
            for match in re.finditer(r"^```\w+ (\S+)\n((?s:.*?))^```", section, re.MULTILINE)
        }
        commands = re.findall(r"^\$ gptailor (.*)$", section, re.MULTILINE)
        if not commands:  # as the page's first lines say
            commands = [f"compile {name} -o {name.removesuffix('.tailor')}" for name in files]
        results.append(Recipe(section.partition("\n")[0], files, commands))
    return results


RECIPES = recipes()


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, adapters and texts, where recipes leave files for later recipes."""
    return lay_out(tmp_path_factory.mktemp("kitchen"))


def test_there_are_at_least_twenty_recipes() -> None:
    assert len(RECIPES) >= 20
    assert all(recipe.commands for recipe in RECIPES)


def outputs(recipe: Recipe) -> set[str]:
    """Return the names of its commands' outputs."""
    words = (shlex.split(command) for command in recipe.commands)
    return {line[line.index("-o") + 1] for line in words if "-o" in line}


def used(recipe: Recipe) -> list[Recipe]:
    """The earlier recipes with files or outputs that its commands name."""
    words = {word for command in recipe.commands for word in shlex.split(command)}
    before = RECIPES[: RECIPES.index(recipe)]
    return [item for item in before if words & (item.files.keys() | outputs(item))]


def cook(recipe: Recipe, kitchen: Path) -> None:
    """Run a recipe after the recipes that it goes on from, if it hasn't run yet."""
    for name, text in recipe.files.items():
        for often, seldom in FEWER.items():
            text = text.replace(often, seldom)  # noqa: PLW2901
        (kitchen / name).write_text(text)
    for item in used(recipe):
        if not all((kitchen / name).exists() for name in outputs(item)):
            cook(item, kitchen)
    for command in recipe.commands:
        words = shlex.split(command)
        assert cli.run(words) == int(words[0] == "diff"), command


@pytest.mark.parametrize("recipe", RECIPES, ids=[item.heading for item in RECIPES])
def test_the_commands_of_a_recipe_succeed(
    recipe: Recipe,
    kitchen: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "gguf" in recipe.commands[0] and importlib.util.find_spec("gguf") is None:
        pytest.skip("the package 'gguf' is not installed")
    if any(cli.COMMANDS.problem(command.split()[0]) for command in recipe.commands):
        pytest.skip("the plugin of a command was removed")
    monkeypatch.chdir(kitchen)
    for name in outputs(recipe):  # a recipe that goes on from this one may have made them
        shutil.rmtree(name, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
    cook(recipe, kitchen)
    output = capsys.readouterr()
    assert not re.search(r"\berror[\[:]", output.err)
    assert "Traceback" not in output.err
    assert all((kitchen / name).exists() for name in outputs(recipe))
