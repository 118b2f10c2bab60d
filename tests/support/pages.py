"""The pages of the documentation, as tests read them: fenced blocks, headings and links."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from gptailor.plan.registry import OBJECTIVES

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    """A fenced block: where it stands, its language, what else its fence says, its text."""

    page: str
    line: int
    language: str
    marks: str
    text: str

    @property
    def place(self) -> str:
        """`docs/lock.md:6`."""
        return f"{self.page}:{self.line}"


class Link(NamedTuple):
    """A link or a picture: where it stands, and where it leads."""

    page: str
    to: str


def needs_missing_plugin(text: str) -> bool:
    """Return whether a plan has an objective of a plugin with a removed folder."""
    return any(map(OBJECTIVES.problem, re.findall(r"(\w+)\(", text)))


def pages() -> list[str]:
    """All pages that people read, by their path in the tree."""
    folders = ("docs", "examples", "benchmarks", "news", "plans", ".github", "editors", "gptailor")
    results = [*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))]
    return sorted(
        str(path.relative_to(ROOT))
        for path in results
        if path.parent.name != "news" or path.name == "README.md"
        if "node_modules" not in path.parts
    )


@cache
def tokens(page: str) -> list[Token]:
    """A page as CommonMark and GitHub's tables have it."""
    reader = MarkdownIt("commonmark").enable("table")
    return reader.parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """A page's fenced blocks, those in lists too."""
    results = []
    for token in tokens(page):
        if token.type == "fence" and token.map is not None:
            language, _, marks = token.info.strip().partition(" ")
            results.append(Block(page, token.map[0] + 1, language, marks.strip(), token.content))
    return results


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings, and those that it sets itself."""
    results: set[str] = set()
    for opening, inline in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            results.add(_fresh(_slug(inline), results))
    return results | set(re.findall(r'<a (?:id|name)="([^"]+)"', (ROOT / page).read_text("utf-8")))


def _slug(heading: Token) -> str:
    text = "".join(part.content for part in heading.children or ())
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def _fresh(slug: str, taken: set[str]) -> str:
    """A heading that stands there again gets a number."""
    names = (slug, *(f"{slug}-{number}" for number in range(1, 100)))
    return next(name for name in names if name not in taken)


def links(page: str) -> list[Link]:
    """All links and pictures of a page."""
    inline = (child for token in tokens(page) for child in token.children or ())
    named = [child.attrGet("href") or child.attrGet("src") for child in inline]
    return [Link(page, str(to)) for to in named if to]
