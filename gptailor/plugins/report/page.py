"""The report's page: one file of HTML with its styles, scripts and charts."""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from gptailor.plugins.report.charts import bundle, spec, theme
from gptailor.plugins.report.section import Section, ShownTable

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data:"
)
"""The page's rights in a browser: nothing that uses a network."""

_DIGEST = re.compile("[0-9a-f]{64}")

_SHOWN_ROWS = 24
"""The most rows of a table without a chart that isn't folded."""


def page_html(title: str, lead: str, sections: Sequence[Section], foot: str = "") -> str:
    """Return the whole page; `lead` is HTML, a line or two on the page's subject."""
    anchors = [section.anchor for section in sections]
    assert len({*anchors}) == len(anchors), "sections are told apart by their anchors"
    charts = {section.anchor: spec(section.chart) for section in sections if section.chart}
    plans = {section.anchor: dict(section.plans) for section in sections if section.plans}
    links = "".join(
        f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in sections
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>\n{_beside('report.css')}</style>\n</head>",
            '<body>\n<a class="skip" href="#main">Skip to the content</a>',
            f"<header>\n<h1>{escape(title)}</h1>\n<p class=lead>{lead}</p>",
            '<button type="button" id="theme" aria-pressed="false">Dark</button>',
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main id="main">',
            *(_section(section) for section in sections),
            f"</main>\n<footer><p>{foot}</p></footer>",
            _as_json("charts", charts),
            _as_json("plans", plans),
            _as_json("config", theme()),
            *([_script(bundle())] if charts else []),
            _script(_beside("report.js")),
            "</body>\n</html>\n",
        ]
    )


def _beside(name: str) -> str:
    return files("gptailor.plugins.report").joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """Return a script that an end tag within a string doesn't end."""
    safe = text.replace("</script", "<\\/script")
    return f"<script>\n{safe}\n</script>"


def _as_json(name: str, value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _section(section: Section) -> str:
    return "\n".join(
        [
            f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">',
            f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>',
            *([f"<p>{escape(section.words)}</p>"] if section.words else []),
            *_chart(section),
            *_plans(section),
            *([section.html] if section.html else []),
            *([_table(section, section.table)] if section.table else []),
            "</section>",
        ]
    )


def _chart(section: Section) -> Iterator[str]:
    if section.chart is not None:
        label = escape(f"{section.title}: a chart" + "; its table is below" * bool(section.table))
        yield f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">'
        yield f'<div class="chart" data-chart="{section.anchor}"></div></div>'
    if section.note:
        yield f'<p class="note">{escape(section.note)}</p>'


def _plans(section: Section) -> Iterator[str]:
    if section.plans:
        anchor = section.anchor
        options = "".join(
            f'<option value="{escape(n)}">{escape(n)}</option>' for n in section.plans
        )
        yield f'<div class="picker"><label for="{anchor}-plan">Plan</label> '
        yield f'<select id="{anchor}-plan" data-plans="{anchor}">'
        yield f'<option value="">choose one, or click in the chart</option>{options}</select></div>'
        yield '<div class="text" hidden><button type="button" class="copy">Copy</button>'
        yield f'<pre tabindex="0" id="{anchor}-text" aria-label="The plan"></pre></div>'


def text_html(text: str, label: str) -> str:
    """Return a text unchanged, with a button that copies it."""
    return (
        '<div class="text"><button type="button" class="copy">Copy</button>'
        f'<pre tabindex="0" aria-label="{escape(label)}">{escape(text)}</pre></div>'
    )


def _cell(text: str) -> str:
    digest = ' class="digest"' if _DIGEST.fullmatch(text) else ""
    return f"<td{digest}>{escape(text)}</td>"


def _table(section: Section, table: ShownTable) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(_cell(cell) for cell in cells)
        + "</tr>\n"
        for first, *cells in table.rows
    )
    name = escape(section.title)
    shown = (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}: a table">'
        f"<table><caption>{name}</caption><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>"
    )
    if section.chart is None and len(table.rows) <= _SHOWN_ROWS:
        return shown
    opened = " open" * section.open
    label = "As a table" if section.chart else f"{len(table.rows):,} rows"
    return f"<details{opened}><summary>{label}</summary>\n{shown}\n</details>"
