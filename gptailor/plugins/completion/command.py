"""The command `completion`: the shell's completion script, printed or installed."""

import os
from pathlib import Path
from typing import NamedTuple, final

import click

from gptailor.cli import options
from gptailor.cli.main import cli

SHELLS = ("bash", "zsh", "fish")

_MARK = "_GPTAILOR_COMPLETE"
"""The variable that gptailor's completion scripts set. Files of other programs lack it."""


@final
class _Place(NamedTuple):
    """The place of a user's completions for a shell, and the setup that the shell needs."""

    file: Path
    needed: str


@click.command("completion", short_help="Print or install a shell's completion script.")
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.option(
    "--install/--print",
    "installing",
    help="Write the script to the folder that SHELL reads, or print it. Default: --print.",
)
def completion_command(shell: str | None, installing: bool) -> None:
    """Print or install the script that completes gptailor's commands in SHELL.

    Without SHELL, the command uses the shell that the variable SHELL names. --install writes one
    file, and prints its path. If the shell doesn't find the file by itself, the command also prints
    the line that your start-up file needs. It changes no start-up file.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise click.UsageError("name a shell: bash, zsh or fish")
    text = _script(name)
    if not installing:
        options.say(text)
        return
    place = _PLACES[name]()
    _install(place.file, text + "\n")
    options.say(place.needed)


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    script_class = get_completion_class(shell)
    assert script_class is not None
    return script_class(cli, {}, "gptailor", _MARK).source()


def _install(file: Path, text: str) -> None:
    """Write the script, all or nothing. Raise TailorError for a file of another program."""
    from gptailor.checkpoint.write.output_file import write_whole
    from gptailor.plan.faults import TailorError

    present = file.read_text("utf-8", errors="replace") if file.exists() else None
    if present == text:
        options.say(f"{file}: exists already, unchanged")
        return
    if present is not None and _MARK not in present:
        raise TailorError(f"'{file}' exists, but gptailor didn't write it; move it")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(os.path.realpath(file)), text.encode(), file)
    options.say(f"{file}: {'written' if present is None else 'written again'}")


def _bash() -> _Place:
    folders = map(Path, os.environ.get("BASH_COMPLETION_USER_DIR", "").split(":"))
    own = next((folder for folder in folders if folder.is_absolute()), None)
    folder = own or _home("XDG_DATA_HOME", ".local/share") / "bash-completion"
    file = folder / "completions" / "gptailor"
    return _Place(
        file,
        "New shells read it where the package bash-completion is installed. Without that, add to "
        f"~/.bashrc:\n  source {_shown(file)}",
    )


def _zsh() -> _Place:
    folder = _home("XDG_DATA_HOME", ".local/share") / "zsh" / "site-functions"
    return _Place(
        folder / "_gptailor",
        "New shells read it if ~/.zshrc has this, before any other compinit:\n"
        f"  fpath=({_shown(folder)} $fpath); autoload -Uz compinit; compinit",
    )


def _fish() -> _Place:
    folder = _home("XDG_CONFIG_HOME", ".config") / "fish" / "completions"
    return _Place(folder / "gptailor.fish", "New shells read it by themselves.")


_PLACES = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _home(variable: str, below: str) -> Path:
    """Return a folder of the XDG base directories. Their specification ignores relative paths."""
    from gptailor.plan.faults import TailorError

    path = Path(os.environ.get(variable, ""))
    if path.is_absolute():
        return path
    try:
        return Path.home() / below
    except RuntimeError as error:
        raise TailorError("there is no home folder; set HOME") from error


def _shown(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
