"""Paste the first sentences and the options of each command into docs/commands.md.

python docs/commands.py            # paste
python docs/commands.py --check    # end with 1 if the page isn't current
"""

import inspect
import re
import sys
from pathlib import Path

import click

from docs.generated import write_or_check
from gptailor.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"(<!-- gptailor([ \w-]*) --help -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)
SHARED = re.compile(r"(<!-- shared options -->\n).*?(<!-- end -->\n)", re.DOTALL)
GROUP = re.compile(r"^(\w[\w ]*):\n((?:  .*\n?)+)", re.MULTILINE)
COMMON = ("--model", "--set", "--family", "--device", "--memory", "--dtype", "--help")
"""Options of several commands, as `eval` has them; the page explains them once."""


def pasted(page: str) -> str:
    """Return the page with the current text of each command between its markers."""
    shared = {row: name for name in COMMON for option, row in records("eval") if option == name}

    def current(found: re.Match[str]) -> str:
        if any(map(COMMANDS.problem, found[2].split() or COMMANDS.installed())):
            return found[0]  # of a plugin whose folder was removed
        text = described(found[2].strip(), shared) if found[2] else index()
        return f"{found[1]}{text}{found[3]}"

    table = block("", [row for row, name in shared.items() if name != "--help"])
    return BLOCK.sub(current, SHARED.sub(lambda found: found[1] + table + found[2], page))


def opened(name: str) -> click.Context:
    """Return the context of a command, or of `gptailor` for an empty name."""
    context = cli.make_context("gptailor", [], resilient_parsing=True, terminal_width=80)
    if not name:
        return context
    found = cli.get_command(context, name)
    if found is None:
        sys.exit(f"there is no command '{name}'")
    return found.make_context(name, [], parent=context, resilient_parsing=True)


def records(name: str) -> list[tuple[str, tuple[str, str]]]:
    """Return each option of a command: its long name, and its form and help."""
    context = opened(name)
    options = (o for o in context.command.get_params(context) if isinstance(o, click.Option))
    found = ((max(option.opts, key=len), option.get_help_record(context)) for option in options)
    return [(name, row) for name, row in found if row is not None]


def index() -> str:
    """Return the commands of each group, with links to their sections."""
    groups = dict(GROUP.findall(opened("").get_help()))
    lines = [block("gptailor [OPTIONS] COMMAND [ARGS]...", [row for _, row in records("")]), "\n"]
    for group, text in groups.items():
        if group != "Options":
            names = re.findall(r"^  ([\w-]+)", text, re.MULTILINE)
            lines.append(f"- {group}: {', '.join(f'[{n}](#gptailor-{n})' for n in names)}\n")
    return "".join(lines)


def described(name: str, shared: dict[tuple[str, str], str]) -> str:
    """Return a command's first paragraph, usage and options; name the shared options."""
    context = opened(name)
    first = inspect.cleandoc(context.command.help or "").partition("\n\n")[0]
    rows = [row for _, row in records(name)]
    names = ", ".join(shared[row] for row in rows if row in shared and shared[row] != "--help")
    own = [row for row in rows if row not in shared]
    usage = context.get_usage().removeprefix("Usage: ")
    return f"{first}\n\n{block(usage, own, f'Shared options: {names}' if names else '')}"


def block(head: str, rows: list[tuple[str, str]], end: str = "") -> str:
    """Return a block of text in 80 columns: a line, options with their help, another line."""
    formatter = click.HelpFormatter(width=80)
    formatter.indent()
    if rows:
        formatter.write_dl(rows)
    parts = (f"{head}\n" if head else "", formatter.getvalue(), f"  {end}\n" if end else "")
    return "```text\n" + "\n".join(filter(None, parts)) + "```\n"


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
