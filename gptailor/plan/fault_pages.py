"""The explanation of each code, from docs/faults.md, which the package holds."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

FAULTS_FILE = Path(__file__).with_name("faults.md")


@final
@dataclass(frozen=True)
class FaultPage:
    """The part of docs/faults.md on a code: its line in the file, its title, its text in Markdown.

    `words` is the text without examples and links.
    """

    line: int
    title: str
    text: str

    @property
    def words(self) -> str:
        """Return the text without examples and links."""
        without = re.sub(r"```.*?```", "", self.text, flags=re.DOTALL).strip()
        return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", without)

    @property
    def plain(self) -> str:
        """Return the text for a terminal: examples are indented, links are their words."""
        linked = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", self.text.strip())
        lines, inside = [], False
        for line in linked.splitlines():
            if line.startswith("```"):
                inside = not inside
                continue
            lines.append(f"    {line}" if inside and line else line)
        return "\n".join(lines)


@functools.cache
def fault_pages() -> dict[str, FaultPage]:
    """Return the page of each code: a section, or a row of a table with fault and remedy."""
    try:
        page = FAULTS_FILE.read_text("utf-8")
    except OSError:
        return {}
    pages: dict[str, FaultPage] = {}
    for found in re.finditer(r"^### ([SPMC]\d{3}) (.+)\n((?:(?!##).*\n?)*)", page, re.MULTILINE):
        line = page.count("\n", 0, found.start()) + 1
        pages[found[1]] = FaultPage(line, found[2], found[3])
    for found in re.finditer(r"^\| ([SPMC]\d{3}) \| (.+?) \|(?: (.+?) \|)?$", page, re.MULTILINE):
        line = page.count("\n", 0, found.start()) + 1
        remedy = f"Remedy: {found[3]}." if found[3] else ""
        pages.setdefault(found[1], FaultPage(line, found[2], remedy))
    return pages
