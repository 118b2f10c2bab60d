"""The core without the folders of its plugins."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in (ROOT / "gptailor/plugins").glob("*/__init__.py"))
FAST = ("tests/lang", "tests/plan", "tests/checks/test_refused.py", "tests/methods")


def copy_without(folder: Path, plugins: list[str]) -> None:
    """Copy the package and its tests, without some plugins and their tests."""
    for name in ("gptailor", "tests", "docs", "grammar", "plans"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for plugin in plugins:
        shutil.rmtree(folder / "gptailor" / "plugins" / plugin)
        shutil.rmtree(folder / "tests" / "plugins" / plugin)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, text=True, capture_output=True,
        check=False, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip


def test_each_plugin_has_tests() -> None:
    assert len(PLUGINS) >= 7
    for plugin in PLUGINS:
        assert [*(ROOT / "tests/plugins" / plugin).glob("test_*.py")], plugin


@pytest.mark.slow
def test_without_its_plugins_the_core_checks_and_compiles(tmp_path: Path, family: Path) -> None:
    copy_without(tmp_path, PLUGINS)
    (tmp_path / "p.tailor").write_text(f'tailor 1\nmodel base = "{family}/base"\ndrop L1\n')
    for arguments in (["check", "p.tailor"], ["compile", "p.tailor", "-o", "out"], ["--help"]):
        done = run(tmp_path, "gptailor", *arguments)
        assert done.returncode == 0, done.stderr
    done = run(tmp_path, "gptailor", "publish", "out", "me/model")
    assert done.returncode == 2
    assert "the command 'publish': gptailor " in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "m.yml").write_text("models: [{model: a}]\nmerge_method: linear\n")
    done = run(tmp_path, "gptailor", "import", "m.yml")
    assert done.returncode == 2
    assert "there is no importer for 'mergekit'; gptailor " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_without_a_plugin_the_tests_of_the_core_pass(plugin: str, tmp_path: Path) -> None:
    copy_without(tmp_path, [plugin])
    done = run(tmp_path, "pytest", "-q", "-m", "not thorough and not slow", *FAST)
    assert done.returncode == 0, done.stdout[-3000:]
