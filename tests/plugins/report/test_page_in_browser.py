"""The report's page in a real Chromium: no errors, no network, all pictures, keys, contrast."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import pytest

import gptailor
from gptailor.plan.resolved import Resolved
from gptailor.plugins.report.layer_effects import run_effects
from gptailor.plugins.report.layer_map import layer_map
from gptailor.plugins.report.page import page_html, text_html
from gptailor.plugins.report.run_sections import run_sections
from gptailor.plugins.report.scores_section import scores_sections
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.searching.run_reading import read_run
from tests.searching import landscape
from tests.searching.written_run import ended, run_of

PLAN = """\
tailor 1
model base = "./a"
model math = "./b"
model code = "./c"
L0..L9 = merge(L0..L9 base, L0..L9 math, 0.3)
L10..L19.attn from math
L20..L29 from any of math, code by ties(density=0.5)
drop L40..L47, L60
repeat L65..L70
maybe drop L72..L73
bridge on "t.txt"
heal L36..L39 on "t.txt"
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that a page has."""
    points = [{"x": i, "y": i % 4, "plan": f"trial {i}"} for i in range(9)]
    chart = (
        alt.Chart(alt.Data(values=points), width="container", height=200)
        .mark_point(size=200)
        .encode(x="x:Q", y="y:Q")
    )
    plans = {point["plan"]: f"tailor 1\n# {point['plan']} </script>" for point in points}
    run = tmp_path_factory.mktemp("run")
    aims = (
        landscape.NLL._replace(label="nll general instructions", unit="nats"),
        landscape.ACCURACY._replace(label="questions", unit="accuracy"),
    )
    ended(run, run_of(run, aims, trials=24))
    reading = read_run(run)
    sections = [
        *scores_sections(reading),
        *run_sections(reading, run_effects(reading)),
        layer_map(Resolved(gptailor.loads(PLAN), 80)),
        Section("front", "Trials", "All of them.", chart, plans=plans),
        Section("size", "Size", "", table=ShownTable(("", "base"), (("layers", "80"),))),
        Section("plan", "Plan", "", html=text_html(PLAN, "The plan")),
    ]
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page_html("A report", "<strong>Better.</strong>", sections, "The end."))
    return file


@pytest.fixture(scope="module")
def opened(open_page: Any, report: Path) -> Any:
    """The page in the browser, which tests leave as they find it."""
    return open_page(report)


@pytest.fixture
def page(opened: Any) -> Iterator[Any]:
    """Yield the reloaded page: an earlier test may have chosen a theme or clicked."""
    opened.page.reload()
    opened.page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield opened.page
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.page.set_viewport_size({"width": 1000, "height": 900})
    opened.page.evaluate("document.activeElement.blur()")


DRAWN = """() => [...document.querySelectorAll("[data-chart]")].map((place) => {
  const svg = place.querySelector("svg");
  const marks = svg ? [...svg.querySelectorAll("path, text, line")] : [];
  const box = svg ? svg.getBoundingClientRect() : { width: 0, height: 0 };
  return [place.dataset.chart, marks.length, box.width, box.height];
})"""


def test_the_page_opens_from_disk_without_errors_or_a_network(opened: Any, report: Path) -> None:
    assert opened.said == []
    asked = [url for url in opened.asked if not url.startswith(("data:", "blob:"))]
    assert {*asked} == {report.as_uri()}
    drawn = opened.page.evaluate(DRAWN)
    names = [name for name, *_ in drawn]
    assert {"scores", "scores-2", "map", "front", "trials", "progress"} <= {*names}
    assert all(marks > 8 and width > 500 and height > 60 for _, marks, width, height in drawn)


CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style, option")) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const own = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(channels(own)), light(behind(element))].sort((x, y) => y - x);
    found.push([walker.currentNode.data.trim().slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  for (const mark of document.querySelectorAll("[data-chart] .role-legend-symbol path")) {
    const { fill, stroke } = getComputedStyle(mark);
    const own = /^rgb\\(/.test(fill) ? fill : stroke;
    const [a, b] = [light(channels(own)), light(behind(mark))].sort((x, y) => y - x);
    found.push(["a legend's symbol", 1.5 * (a + 0.05) / (b + 0.05)]);  // marks need 3, text 4.5
  }
  return found;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast(page: Any, dark: bool) -> None:
    page.emulate_media(color_scheme="dark" if dark else "light")
    fold = "(open) => document.querySelectorAll('details').forEach((d) => { d.open = open; })"
    page.evaluate(fold, True)
    seen = page.evaluate(CONTRAST)
    page.evaluate(fold, False)
    assert len(seen) > 300
    assert "a legend's symbol" in {text for text, _ in seen}
    assert {text: ratio for text, ratio in seen if ratio < 4.5} == {}
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


FOCUSED = """() => {
  const one = document.activeElement;
  const style = getComputedStyle(one);
  return one === document.body ? null
    : [[...document.querySelectorAll("*")].indexOf(one), style.outlineStyle !== "none"
        && parseFloat(style.outlineWidth) >= 2];
}"""
REACHABLE = """() => [...document.querySelectorAll("*")].map((one, i) => [one, i]).filter(([one]) =>
  one.matches("a[href], button, select, summary, [tabindex='0']")
  && one.checkVisibility()).map(([, i]) => i)"""


def test_the_keyboard_reaches_every_control(page: Any) -> None:
    wanted = page.evaluate(REACHABLE)
    page.evaluate("getSelection().removeAllRanges()")
    went: list[int] = []
    for _ in range(len(wanted) + 2):
        page.keyboard.press("Tab")
        if (at := page.evaluate(FOCUSED)) is None:
            break
        number, outlined = at
        assert outlined
        went.append(number)
    assert went == wanted
    assert len(went) > 12


def test_the_first_tab_skips_to_the_content(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html#main")
    page.evaluate("history.replaceState(null, '', '#')")
    page.evaluate("scrollTo(0, 0)")


INK = """() => getComputedStyle(document.querySelector("[data-chart] text")).fill"""


def test_the_button_turns_page_and_charts_dark_and_light(page: Any) -> None:
    before = page.evaluate(INK)
    button = page.locator("#theme")
    assert button.text_content() == "Dark"
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert button.text_content() == "Light"
    assert page.evaluate(INK) != before
    button.click()
    assert page.evaluate(INK) == before


CUT = """() => [...document.querySelectorAll("[data-chart] text")].filter((text) => {
  const box = text.getBoundingClientRect();
  return box.right > innerWidth || box.left < 0 || text.textContent.endsWith("…");
}).map((text) => text.textContent)"""
"""The texts of charts that the edge of the page cuts, or that are shortened."""


def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.wait_for_function("document.querySelector('[data-chart] svg').clientWidth <= 390")
    drawn = page.evaluate(DRAWN)
    assert all(200 < width <= 390 for _, _, width, _ in drawn)
    assert page.evaluate(CUT) == []


def test_a_click_and_a_choice_show_a_plan(page: Any) -> None:
    text = page.locator("#front-text")
    assert not text.is_visible()
    page.locator("#front .mark-symbol path").nth(3).click()
    assert text.text_content() == "tailor 1\n# trial 3 </script>"
    assert page.locator("#front-plan").input_value() == "trial 3"
    page.locator("#front-plan").select_option("trial 5")
    assert text.text_content() == "tailor 1\n# trial 5 </script>"
    page.locator("#front-plan").select_option("")
    assert not text.is_visible()


def test_a_text_can_be_copied(page: Any) -> None:
    page.locator("#plan .copy").click()
    condition = "['Copied', 'Selected'].includes(document.querySelector('#plan .copy').textContent)"
    page.wait_for_function(condition)


def test_hovering_a_layer_shows_its_recipe(page: Any) -> None:
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("#map .mark-rect path").nth(0).hover(force=True)
    text = page.locator("#vg-tooltip-element").inner_text()
    assert "layer" in text
    assert "made of" in text


def test_the_printed_page_is_always_light(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(INK) == "rgb(0, 0, 0)"
    assert not page.locator("#theme").is_visible()
    assert page.pdf().startswith(b"%PDF")
