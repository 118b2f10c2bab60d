"""The end of each script that writes a part of a page: it writes the page, or checks it."""

import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(page: Path, pasted: Callable[[str], str]) -> None:
    """Write the page with its current parts; with `--check` end with 1 if it isn't current."""
    text = page.read_text(encoding="utf-8")
    current = pasted(text)
    if "--check" in sys.argv[1:]:
        sys.exit(int(text != current))
    page.write_text(current, encoding="utf-8")
