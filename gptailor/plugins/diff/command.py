"""The command `diff`: the differences between two plans."""

import sys

import click

from gptailor.cli import options
from gptailor.cli.plans import read_plan_or_folder


@click.command("diff", short_help="Show the differences between two plans.")
@click.argument("first", metavar="A", type=click.Path(allow_dash=True))
@click.argument("second", metavar="B", type=click.Path(allow_dash=True))
def diff_command(first: str, second: str) -> None:
    """Show the differences between two plans, or compiled folders, layer by layer.

    If layers differ, the command draws two maps: row 1 is A, row 2 is B. Marks below the maps show
    the layers that differ. Then it prints the differences in words. For a GGUF file and another
    model, it also prints their sizes and types. The exit code is 0 if the plans are equal, and 1 if
    they differ.
    """
    from gptailor.plugins.diff.compare import diff_lines

    one, other = ((options.shown_name(n), read_plan_or_folder(n)) for n in (first, second))
    lines, differ = diff_lines(one, other, options.width())
    for line in lines:
        options.say_drawn(line)
    sys.exit(1 if differ else 0)
