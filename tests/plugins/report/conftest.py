"""A headless Chromium for the report's pages, started once for each module."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """Start the browser with a home of its own; skip the test without a browser.

    It ends with its module: no other test can run an event loop while playwright's driver runs.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((there for name in names if (there := shutil.which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        home = {name: str(tmp_path_factory.mktemp("home")) for name in ("HOME", "XDG_CONFIG_HOME")}
        browser = driver.chromium.launch(
            executable_path=program, args=_ARGUMENTS, env={**os.environ, **home}
        )
        yield browser
        browser.close()


@final
class Opened:
    """A drawn page, the messages of its console, and the URLs that it requested."""

    def __init__(self, page: "Page", file: Path) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda one: self.said.append(f"{one.type}: {one.text}"))
        page.on("pageerror", lambda one: self.said.append(f"error: {one}"))
        page.on("request", lambda one: self.asked.append(one.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)


Open = Callable[[Path], Opened]


@pytest.fixture(scope="module")
def open_page(chromium: "Browser") -> Iterator[Open]:
    """Open a file as a page, light and 1000 pixels wide."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900}, color_scheme="light")
    yield lambda file: Opened(context.new_page(), file)
    context.close()
