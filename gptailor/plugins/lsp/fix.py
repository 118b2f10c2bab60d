"""The corrections of `gptailor check --fix`: faults that have only one remedy, in a plan's file."""

from pathlib import Path

import click

from gptailor.cli import options
from gptailor.cli.plans import rewrite
from gptailor.plugins.lsp.plan_text import PlanText
from gptailor.plugins.lsp.remedies import fixed


def fix(name: str) -> None:
    """Correct a plan's file, and print each correction on standard error."""
    if name == "-":
        raise click.UsageError("--fix can't correct standard input (-); name a file")
    before = options.plan_text(name)
    mark = "\ufeff" if before.startswith("\ufeff") else ""
    text = PlanText(Path(name), before.removeprefix(mark))
    if text.is_json:
        return
    text, titles = fixed(text)
    if titles:
        rewrite(name, mark + text.text, before, silent=True)
    for title in titles:
        options.say(f"{name}: fixed: {title}", err=True)
