"""Files for editors: the grammar for colours, and the extension for VS Code."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from gptailor.plugins.highlight.word_groups import word_groups

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "editors" / "vscode"


@pytest.fixture(scope="module")
def grammars():
    spec = importlib.util.spec_from_file_location("grammars", ROOT / "editors" / "grammars.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_grammars_are_up_to_date(grammars):
    for path, text in grammars.texts().items():
        assert path.read_text("utf-8") == text, "run python editors/grammars.py"


def patterns(rule):
    """All regular expressions of a grammar."""
    if isinstance(rule, dict):
        for key, value in rule.items():
            if key in ("match", "begin", "end", "while"):
                yield value
            else:
                yield from patterns(value)
    elif isinstance(rule, list):
        for value in rule:
            yield from patterns(value)


def test_every_word_of_the_language_has_a_colour(grammars):
    results = [re.compile(pattern.replace(r"\G", "")) for pattern in patterns(grammars.grammar())]
    samples = {"method": "{}(", "objective": "{}(", "function": "{}(", "dtype": "dtype {}"}
    samples["file type"] = "gguf {}"
    samples |= {"branch": ".{}", "norms": ".{}", "role": ".mlp.{}", "setting": "={}"}
    plain = re.compile(grammars.NAME)
    for group, words in word_groups().items():
        for word in words:
            sample = samples.get(group, "{}").format(word)
            matches = [m for item in results for m in item.finditer(sample) if word in m[0]]
            assert any(m.re.pattern != rf"(?<![\w.]){plain.pattern}" for m in matches), sample


def test_the_extension_is_of_the_language():
    document = json.loads((EXTENSION / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert document["version"] == project["version"]
    contributed = document["contributes"]
    assert contributed["languages"][0]["extensions"] == [".tailor"]
    for grammar in contributed["grammars"]:
        assert (EXTENSION / grammar["path"]).is_file()
    locked = json.loads((EXTENSION / "package-lock.json").read_text())
    assert locked["packages"][""]["dependencies"] == document["dependencies"]
    source = (EXTENSION / "src" / "extension.ts").read_text()
    for setting in contributed["configuration"]["properties"]:
        assert f'get("{setting.removeprefix("gptailor.")}"' in source
