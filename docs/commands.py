"""Paste the help of each command into docs/commands.md.

python docs/commands.py            # paste
python docs/commands.py --check    # end with 1 if the page isn't current
"""

import re
import sys
from pathlib import Path

from docs.generated import write_or_check
from gptailor.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"(<!-- gptailor([ \w-]*) --help -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)


def pasted(page: str) -> str:
    """Return the page with the current help between its markers."""

    def current(found: re.Match[str]) -> str:
        if any(map(COMMANDS.problem, found[2].split() or COMMANDS.installed())):
            return found[0]  # of a plugin whose folder was removed
        return f"{found[1]}```text\n{said(found[2])}```\n{found[3]}"

    return BLOCK.sub(current, page)


def said(command: str) -> str:
    """Return the help of a command for a terminal of 80 columns."""
    context = cli.make_context("gptailor", [], resilient_parsing=True, terminal_width=78)
    name = command.strip()
    if not name:
        return f"{context.get_help()}\n"
    found = cli.get_command(context, name)
    if found is None:
        sys.exit(f"there is no command '{name}'")
    inner = found.make_context(name, [], parent=context, resilient_parsing=True)
    return f"{inner.get_help()}\n"


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
