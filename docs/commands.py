"""Paste the help of each command into docs/commands.md.

python docs/commands.py            # paste
python docs/commands.py --check    # end with 1 if the page isn't current
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from docs.generated import write_or_check
from gptailor.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"(<!-- gptailor([ \w-]*) --help -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)
SHARED = re.compile(r"(<!-- shared options -->\n).*?(<!-- end -->\n)", re.DOTALL)
COMMON = ("--model", "--set", "--family", "--device", "--memory", "--dtype", "--help")
"""Options of several commands, as `eval` has them; the page explains them once."""


def pasted(page: str) -> str:
    """Return the page with the current help between its markers."""

    shared = {option: record(option, "eval") for option in COMMON}

    def current(found: re.Match[str]) -> str:
        if any(map(COMMANDS.problem, found[2].split() or COMMANDS.installed())):
            return found[0]  # of a plugin whose folder was removed
        return f"{found[1]}```text\n{said(found[2].strip(), shared)}```\n{found[3]}"

    bar = "\\|"
    rows = "".join(f"| `{a.replace('|', bar)}` | {b} |\n" for a, b in filter(None, shared.values()))
    table = "| option | meaning |\n|---|---|\n" + rows
    return BLOCK.sub(current, SHARED.sub(lambda found: found[1] + table + found[2], page))


def opened(name: str) -> click.Context:
    """Return the context of a command, or of `gptailor` for an empty name."""
    context = cli.make_context("gptailor", [], resilient_parsing=True, terminal_width=78)
    if not name:
        return context
    found = cli.get_command(context, name)
    if found is None:
        sys.exit(f"there is no command '{name}'")
    return found.make_context(name, [], parent=context, resilient_parsing=True)


def record(option: str, name: str) -> tuple[str, str] | None:
    """Return an option's form and help in a command, if the command has it."""
    context = opened(name)
    found = [each for each in context.command.get_params(context) if option in each.opts]
    return found[0].get_help_record(context) if found else None


def said(name: str, shared: Mapping[str, tuple[str, str] | None]) -> str:
    """Return the help of a command for a terminal of 80 columns; name its shared options."""
    context = opened(name)
    if not name:
        return f"{context.get_help()}\n"
    hidden = [
        (option, each)
        for option, row in shared.items()
        for each in context.command.get_params(context)
        if isinstance(each, click.Option)
        and option in each.opts
        and each.get_help_record(context) == row
    ]
    for _, each in hidden:
        each.hidden = True
    try:
        text = context.get_help()
    finally:
        for _, each in hidden:
            each.hidden = False
    names = ", ".join(option for option, _ in hidden if option != "--help")
    return f"{text}\n\nShared options: {names}\n" if names else f"{text}\n"


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
