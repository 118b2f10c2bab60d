"""`gptailor completion`: the script of each shell, its file, and the words that it completes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.said import Run, in_process

FILES = {
    "bash": ".local/share/bash-completion/completions/gptailor",
    "zsh": ".local/share/zsh/site-functions/_gptailor",
    "fish": ".config/fish/completions/gptailor.fish",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of one's own, in which bash is the shell."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    return tmp_path


def files(home: Path) -> dict[str, str]:
    return {str(p.relative_to(home)): p.read_text() for p in home.rglob("*") if p.is_file()}


@pytest.mark.parametrize("shell", FILES)
def test_completion_knows_the_shells(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert "_GPTAILOR_COMPLETE" in result.out
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", result.out], check=True)


def test_a_shell_without_a_script_is_misuse(run: Run) -> None:
    result = run("completion", "tcsh")
    assert (result.code, result.out) == (2, "")
    assert "Usage: gptailor completion" in result.err
    assert "'tcsh' is not one of" in result.err


def test_the_help_has_a_line_of_the_command(run: Run) -> None:
    own = run("--help").out.partition("Set up:\n")[2].partition("\n\n")[0]
    lines = dict(line.split(maxsplit=1) for line in own.splitlines())
    assert lines["completion"] == "Print or install a shell's completion script."
    assert run("completion", "--help").out.startswith("Usage: gptailor completion")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("c", ["compile", "check", "completion"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("completion --i", ["--install"]),
        ("ls", ["lsp"]),  # a plugin's command
        ("lsp --hu", ["--hub"]),
    ],
)
def test_completion_completes(typed: str, words: list[str]) -> None:
    environment = {
        "_GPTAILOR_COMPLETE": "bash_complete",
        "COMP_WORDS": f"gptailor {typed}",
        "COMP_CWORD": str(len(typed.split(" "))),
    }
    output = subprocess.run(
        [sys.executable, "-c", "from gptailor.cli.main import cli; cli(prog_name='gptailor')"],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert output.stdout.split() == [f"plain,{word}" for word in words]


@pytest.mark.parametrize("shell", FILES)
def test_install_writes_the_printed_script(run: Run, home: Path, shell: str) -> None:
    result = run("completion", shell, "--install")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{home / FILES[shell]}: written\n")
    assert files(home) == {FILES[shell]: run("completion", shell).out}
    again = run("completion", shell, "--install")
    assert again.out.startswith(f"{home / FILES[shell]}: exists already, unchanged\n")
    assert again.out.splitlines()[1:] == result.out.splitlines()[1:]
    assert list(files(home)) == [FILES[shell]]


def test_the_shell_is_the_environments(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("completion").out == run("completion", "bash", "--print").out
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run("completion", "--install").code == 0
    assert list(files(home)) == [FILES["fish"]]
    for unknown in ("/bin/tcsh", ""):
        monkeypatch.setenv("SHELL", unknown)
        result = run("completion", "--install")
        assert (result.code, result.out) == (2, "")
        assert "name a shell: bash, zsh or fish" in result.err


@pytest.mark.parametrize(
    ("shell", "variable", "file"),
    [
        ("bash", "XDG_DATA_HOME", "bash-completion/completions/gptailor"),
        ("bash", "BASH_COMPLETION_USER_DIR", "completions/gptailor"),
        ("zsh", "XDG_DATA_HOME", "zsh/site-functions/_gptailor"),
        ("fish", "XDG_CONFIG_HOME", "fish/completions/gptailor.fish"),
    ],
)
def test_folders_of_the_environment_are_used(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, shell: str, variable: str, file: str
) -> None:
    monkeypatch.setenv(variable, str(home / "own place"))
    result = run("completion", shell, "--install")
    assert list(files(home)) == [f"own place/{file}"]
    assert (f"'{home}/own place/" in result.out) == (shell != "fish")


@pytest.mark.parametrize(
    ("folders", "file"),
    [
        ("{home}/a:{home}/b", "a/completions/gptailor"),
        (":own:{home}/b", "b/completions/gptailor"),
        ("own", FILES["bash"]),
        (":", FILES["bash"]),
    ],
)
def test_the_first_absolute_folder_of_bash_is_used(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, folders: str, file: str
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("BASH_COMPLETION_USER_DIR", folders.format(home=home))
    assert run("completion", "bash", "--install").code == 0
    assert list(files(home)) == [file]


def test_an_old_script_is_replaced_and_a_strange_file_is_not(run: Run, home: Path) -> None:
    run("completion", "--install")
    file = home / FILES["bash"]
    current = file.read_text()
    file.write_text("# an old one: _GPTAILOR_COMPLETE\n")
    assert run("completion", "--install").out.startswith(f"{file}: written again\n")
    assert file.read_text() == current
    file.write_text("complete -W mine gptailor\n")
    result = run("completion", "--install")
    assert (result.code, result.out) == (3, "")
    assert result.err == f"error: '{file}' exists, but gptailor didn't write it; move it\n"
    assert files(home) == {FILES["bash"]: "complete -W mine gptailor\n"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_by_the_installed_file(run: Run, home: Path) -> None:
    run("completion", "--install")
    (home / "gptailor").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from gptailor.cli.main import main; main()' \"$@\"\n"
    )
    (home / "gptailor").chmod(0o755)
    script = (
        f"PATH={home}:$PATH; source {home / FILES['bash']}; COMP_WORDS=(gptailor comp); "
        "COMP_CWORD=1; _gptailor_completion gptailor; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "compile completion\n"
