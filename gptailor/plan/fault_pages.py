"""The explanation of each code, from faults.md in this module's folder."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

FAULTS_FILE = Path(__file__).with_name("faults.md")
_SECTION = re.compile(r"^### ([SPMC]\d{3}) (.+)\n((?:(?!##).*\n?)*)", re.MULTILINE)
_ROW = re.compile(r"^\| ([SPMC]\d{3}) \| (.+?) \|(?: (.+?) \|)?$", re.MULTILINE)


@final
@dataclass(frozen=True)
class FaultPage:
    """The part of faults.md on a code: its line in the file, its title, its text in Markdown.

    `words` is the text without examples and links.
    """

    line: int
    title: str
    text: str

    @property
    def words(self) -> str:
        """Return the text without examples and links."""
        without = re.sub(r"```.*?```", "", self.text, flags=re.DOTALL).strip()
        return _without_links(without)

    @property
    def plain(self) -> str:
        """Return the text for a terminal: examples are indented, links are their words."""
        lines, inside = [], False
        for line in _without_links(self.text.strip()).splitlines():
            if line.startswith("```"):
                inside = not inside
                continue
            lines.append(f"    {line}" if inside and line else line)
        return "\n".join(lines)


def _without_links(text: str) -> str:
    """Return a text in Markdown with the words of its links alone."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)


def _above_table(page: str, at: int) -> str:
    """Return the paragraph above the table that has a row there: the remedy of all its rows."""
    return page[page.rindex("\n### ", 0, at) : at].split("\n\n")[1]


@functools.cache
def fault_pages() -> dict[str, FaultPage]:
    """Return the page of each code: a section, or a row of a table with fault and remedy."""
    page = FAULTS_FILE.read_text("utf-8")
    pages: dict[str, FaultPage] = {}
    for found in (*_SECTION.finditer(page), *_ROW.finditer(page)):
        line = page.count("\n", 0, found.start()) + 1
        text = found[3] or ""
        if found.re is _ROW:
            text = f"Remedy: {text}." if text else f"Remedy: {_above_table(page, found.start())}"
        pages.setdefault(found[1], FaultPage(line, found[2], text))
    return pages
