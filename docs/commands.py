"""Write the first sentences and the options of each command into docs/commands.md.

python docs/commands.py            # write
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
BLOCK = re.compile(r"(<!-- (commands|shared options) -->\n).*?(<!-- end -->\n)", re.DOTALL)
GROUP = re.compile(r"^(\w[\w ]*):\n((?:  .*\n?)+)", re.MULTILINE)
COMMON = ("--model", "--set", "--family", "--device", "--memory", "--dtype")
"""Options of several commands, as `eval` has them; the page explains them once."""
SAID = {"--force": r"Replace (an )?existing files?\b", "--format": r"text for people"}
"""Options that the page's first paragraphs explain, and patterns of their help."""
UNSAID = (("May be given several times.", "[several]"), ("May be repeated.", "[several]"))
"""Sentences of the help that occur often, and their marks on the page."""

Row = tuple[str, str]
"""The form of an option, and its help."""


def pasted(page: str) -> str:
    """Return the page with the current text of the commands between its markers."""
    if any(map(COMMANDS.problem, COMMANDS.installed())):
        return page  # a plugin's folder was removed
    shared = {row: name for name in COMMON for option, row in records("eval") if option == name}
    texts = {"commands": commands(shared), "shared options": block([*shared])}
    return BLOCK.sub(lambda found: f"{found[1]}{texts[found[2]]}{found[3]}", page)


def opened(name: str) -> click.Context:
    """Return the context of a command, or of `gptailor` for an empty name."""
    context = cli.make_context("gptailor", [], resilient_parsing=True, terminal_width=80)
    if not name:
        return context
    found = cli.get_command(context, name)
    if found is None:
        sys.exit(f"there is no command '{name}'")
    return found.make_context(name, [], parent=context, resilient_parsing=True)


def records(name: str) -> list[tuple[str, Row]]:
    """Return each option of a command but `--help`: its long name, and its form and help."""
    context = opened(name)
    options = (o for o in context.command.get_params(context) if isinstance(o, click.Option))
    found = ((max(option.opts, key=len), option.get_help_record(context)) for option in options)
    return [(name, marked(row)) for name, row in found if row is not None and name != "--help"]


def marked(row: Row) -> Row:
    """Return an option's row with marks for frequent sentences, without bounds of counts."""
    form, text = row
    for sentence, mark in UNSAID:
        text = text.replace(sentence, mark)
    return form, re.sub(r"  \[x>=[01]\]|; x>=[01](?=\])", "", text)


def commands(shared: dict[Row, str]) -> str:
    """Return the commands of each group, and the options of `gptailor` itself."""
    parts = [block([row for _, row in records("")])]
    for group, text in GROUP.findall(opened("").get_help()):
        if group != "Options":
            parts.append(f"## {group}\n")
            parts += [described(name, shared) for name in re.findall(r"^  ([\w-]+)", text, re.M)]
    return "\n".join(parts)


def described(name: str, shared: dict[Row, str]) -> str:
    """Return a command's usage, first paragraph and options; name the shared options."""
    context = opened(name)
    first = inspect.cleandoc(context.command.help or "").partition("\n\n")[0]
    usage = context.get_usage().removeprefix("Usage: ").replace(" [OPTIONS]", "")
    names, own = [], []
    for option, row in records(name):
        if row in shared:
            names.append(shared[row])
        elif option in SAID and re.match(SAID[option], row[1]):
            names.append(re.sub(r"[\[\]]", "", row[0]))
        else:
            own.append(row)
    end = f"Shared: {', '.join(names)}" if names else ""
    options = f"\n{block(own, end)}" if own or end else ""
    return f"### `{' '.join(usage.split())}`\n\n{first}\n{options}"


def block(rows: list[Row], end: str = "") -> str:
    """Return a block of text in 80 columns: options with their help, and another line."""
    formatter = click.HelpFormatter(width=80)
    formatter.indent()
    if rows:
        formatter.write_dl(rows)
    parts = (formatter.getvalue(), f"  {end}\n" if end else "")
    return "```text\n" + "\n".join(filter(None, parts)) + "```\n"


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
