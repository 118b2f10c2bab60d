"""The how-to pages: their files are written, their commands run, one after another."""

import shlex
import shutil
from pathlib import Path

import pytest

from gptailor.cli import main as cli
from tests.kitchen import files_and_commands, lay_out
from tests.thorough import THOROUGH

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PAGES = Path(__file__).parents[2] / "docs" / "howto"
ELSEWHERE = {
    "index": "has no commands",
    "vocabulary": "test_vocabulary.py, with a tokenizer of bytes",
    "search": "the cookbook's searches are run",
    "pick": "the cookbook's is run",
    "family": "tests/plugins/adopt",
    "extend": "test_extend.py installs its package",
    "report": "tests/plugins/report",
    "ci": "test_action.py",
    "completion": "test_completion.py",
    "lsp": "tests/plugins/lsp",
}
"""Pages whose commands other tests run."""
FEWER = ("tokens 16384", "tokens 1024")
"""A number of tokens in pages, and the one for the tests' short texts."""
COSTLY = set() if THOROUGH else {"eval", "generate"}
"""Those whose commands the cookbook's test runs too; `make thorough` runs them here as well."""
NAMES = sorted({page.stem for page in PAGES.glob("*.md")} - ELSEWHERE.keys() - COSTLY)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("howto"))


@pytest.fixture
def kitchen(laid_out: Path, tmp_path: Path) -> Path:
    """Files of the page's own: pages write folders of the same names."""
    return shutil.copytree(laid_out, tmp_path / "kitchen", symlinks=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_does_what_it_says(
    name: str, kitchen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cli.COMMANDS.problem(name):
        pytest.skip("the command's plugin was removed")
    monkeypatch.chdir(kitchen)
    ran = 0
    for file, text, commands in files_and_commands((PAGES / f"{name}.md").read_text("utf-8")):
        if file:
            (kitchen / file).write_text(text.replace(*FEWER))
        for command in commands:
            words = shlex.split(command)
            code = cli.run(words[1:])
            assert code == int(words[1] == "diff"), f"{command}\n{capsys.readouterr().err}"
            ran += 1
    assert ran
