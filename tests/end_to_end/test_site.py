"""The documentation's site: built strictly, whole, without network, its pages as on GitHub."""

import importlib.util
import tomllib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
SHAPE = {f"h{level}" for level in range(1, 7)} | {
    "table",
    "tr",
    "pre",
    "ul",
    "ol",
    "li",
    "strong",
    "em",
}

pytest.importorskip("zensical", reason="the extra 'docs' is not installed")
pytestmark = pytest.mark.thorough


class Html(HTMLParser):
    """A page as its reader meets it: links, loaded files, anchors, shape."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.shape: Counter[str] = Counter()
        self._inside = "<article" not in text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = dict(attrs)
        self.anchors |= {got[name] or "" for name in ("id", "name") if name in got}
        if tag == "a" and "href" in got:
            self.links.append(got["href"] or "")
        elif got.get("rel") not in ("canonical", "next", "prev"):
            self.loaded += [got[name] or "" for name in ("src", "href") if got.get(name)]
        self._inside |= tag == "article"
        if self._inside and tag in SHAPE:
            self.shape[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def out(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `pages`, as they are laid out, and the `site`."""
    folder = tmp_path_factory.mktemp("docs")
    builder.stage(folder)
    code, output = builder.built(folder)
    assert code == 0, output
    assert "arning" not in output
    return folder


@pytest.fixture(scope="module")
def pages(out: Path) -> dict[Path, Html]:
    return {path: Html(path.read_text("utf-8")) for path in sorted((out / "site").rglob("*.html"))}


def named(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    for entry in nav:
        inner = entry.values() if isinstance(entry, dict) else [entry]
        for item in inner:
            yield from named(item) if isinstance(item, list) else [item]


def test_every_page_is_in_the_navigation_once(out: Path) -> None:
    project = tomllib.loads((ROOT / "docs/zensical.toml").read_text("utf-8"))["project"]
    there = {str(path.relative_to(out / "pages")) for path in (out / "pages").rglob("*.md")}
    assert Counter(named(project["nav"])) == Counter(there)


def test_every_link_leads_to_a_page_and_a_place_on_it(pages: dict[Path, Html]) -> None:
    assert len(pages) > 20
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), f"{path.name}: {link}"
                assert parts.scheme != "https" or "." in parts.netloc, f"{path.name}: {link}"
                continue
            there = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            whole = parts.fragment in ("", "__skip") or (
                there in pages and unquote(parts.fragment) in pages[there].anchors
            )
            if not there.is_file() or not whole:
                dead.append(f"{path.name}: {link}")
    assert [item for item in dead if not item.startswith("404")] == []


def test_pages_load_no_foreign_files(out: Path, pages: dict[Path, Html]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":  # stands at no place of its own
            continue
        assert page.loaded
        for what in page.loaded:
            if what.startswith("data:"):
                continue
            assert urlsplit(what)[:2] == ("", ""), f"{path.name} loads {what}"
            assert (path.parent / urlsplit(what).path).exists(), f"{path.name} loads {what}"
    sheets = list((out / "site").rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text("utf-8")
        assert "url(http" not in text
        assert "@import" not in text


def test_a_page_has_the_shape_that_github_gives_it(out: Path, pages: dict[Path, Html]) -> None:
    """Two dialects of Markdown, one meaning: lists, tables, blocks and emphasis are the same."""
    reader = MarkdownIt("commonmark").enable("table")
    for path in sorted((out / "pages").rglob("*.md")):
        name = path.relative_to(out / "pages")
        built = name.with_name("index.html") if name.name == "README.md" else name
        shown = pages[(out / "site" / built).with_suffix(".html")].shape
        assert shown == Html(reader.render(path.read_text("utf-8"))).shape, name


def test_the_search_works_from_disk(out: Path) -> None:
    index = (out / "site" / "search.js").read_text("utf-8")
    assert "The Tailor language" in index


def test_tailor_is_coloured(out: Path) -> None:
    text = (out / "site" / "language.html").read_text("utf-8")
    assert '<span class="k">drop</span>' in text


def test_a_recipes_file_is_the_title_of_its_block(out: Path) -> None:
    assert '<span class="filename">cut.tailor</span>' in (out / "site/cookbook.html").read_text()


def test_links_lead_where_pages_stand_on_the_site(builder: ModuleType) -> None:
    page = ROOT / "docs" / "decisions" / "made_up.md"
    text = "[a](../../SECURITY.md#x) [b](../../Makefile) [c](nowhere.md) [lock.md](../lock.md)"
    text += " [M319](../../gptailor/plan/faults.md#m319)"
    assert builder.on_the_site(ROOT / "pyproject.toml") is None
    assert builder.on_the_site(page) == Path("decisions/made_up.md")
    assert builder.on_the_site(builder.FAULTS) == Path("faults.md")
    shown = "[a](../SECURITY.md#x) b [c](nowhere.md) [The lock](../lock.md)"
    shown += " [M319](../faults.md#m319)"
    assert builder.led(text, page) == shown
