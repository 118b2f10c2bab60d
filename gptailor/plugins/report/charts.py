"""The shared parts of the report's charts: colours, sizes, the theme, pictures as files.

Marks use `INK`, `MUTED` and `GRID`. On the page these follow its light or dark theme; a picture
as a file has the light colours.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from gptailor.plan.optional_packages import require
from gptailor.reporting.layer_cells import HUES

if TYPE_CHECKING:
    import altair as alt

INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
"""The colours of text and axes, of secondary marks, of grid lines and of the background."""

_LIGHT = {INK: "#1b1f24", MUTED: "#57606a", GRID: "#d8dde3", PAPER: "#ffffff"}

HEIGHT = 320
"""The height of a chart in pixels; its width is its container's."""

_PICTURE_WIDTH = 760


def mixed(parts: Mapping[str, float]) -> str:
    """Return the colours mixed by their shares, as light mixes: `#7f5f80`."""
    total = sum(parts.values())
    light = [0.0, 0.0, 0.0]
    for colour, share in parts.items():
        for i in range(3):
            light[i] += share / total * (int(colour[1 + 2 * i : 3 + 2 * i], 16) / 255) ** 2.2
    return "#" + "".join(f"{round(255 * channel ** (1 / 2.2)):02x}" for channel in light)


def sized(
    layers: Sequence[Any], height: int = HEIGHT, params: Sequence["alt.Parameter"] = ()
) -> "alt.LayerChart | alt.FacetChart":
    """Return a chart of layers above each other, as wide as its container."""
    import altair as alt

    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart: alt.LayerChart = alt.layer(*layers).add_params(*params)  # type: ignore[assignment] # no facets
    return chart.properties(width="container", height=height, autosize=fit)


def error_bars(
    rows: Sequence[Mapping[str, Any]], low: str, *, ink: str | None = None, **encoded: Any
) -> "list[alt.Chart]":
    """Return bars for the rows with an error, so with a field `low`; [] without such rows."""
    import altair as alt

    bars = [dict(row) for row in rows if low in row]
    if not bars:
        return []
    mark = alt.MarkDef(type="rule", opacity=0.8, color=alt.Undefined if ink is None else ink)
    return [alt.Chart(alt.InlineData(values=bars), mark=mark).encode(**encoded)]


_COLUMNS = "max(1, floor(((width ? containerSize()[0] : 0) || 760) / 170))"
"""The number of a legend's entries in a line, from the width before the layout."""


def theme() -> dict[str, Any]:
    """Return Vega's configuration: quiet axes, titles and legends above."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12,
            "titleFontWeight": 600}  # fmt: skip
    return {
        "background": "transparent",
        "aria": False,
        "font": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "view": {"stroke": None},
        "axis": {**text, "domainColor": MUTED, "tickColor": MUTED, "gridColor": GRID,
                 "labelOverlap": True, "labelFlush": False},
        "legend": {**text, "orient": "top", "labelLimit": 220, "symbolStrokeWidth": 0,
                   "columns": {"expr": _COLUMNS},
                   "symbolBaseFillColor": INK, "symbolBaseStrokeColor": INK},
        "header": text,
        "title": {"color": INK, "subtitleColor": MUTED, "anchor": "start", "frame": "bounds",
                  "fontSize": 14, "offset": 12},
        "text": {"color": INK, "fontSize": 11},
        "point": {"opacity": 0.9, "filled": True, "size": 60},
        "rule": {"color": MUTED},
        "tick": {"color": MUTED},
        "range": {"category": list(HUES)},
    }  # fmt: skip


def require_charts() -> None:
    """Raise MissingPackageError, with the command that installs it, if Altair is missing."""
    require("report", "a report")


@cache
def bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that needs no network."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg] # as its documentation has it
    return script


def spec(chart: "alt.TopLevelMixin") -> dict[str, Any]:
    """Return a chart in Vega-Lite, without its own configuration, and without the title."""
    document: dict[str, Any] = chart.to_dict()
    for name in ("config", "title"):
        document.pop(name, None)
    if isinstance(fit := document.get("autosize"), dict):
        fit["resize"] = True  # a legend takes more lines in a narrower window
    return document


def picture(chart: "alt.TopLevelMixin", title: str, note: str = "") -> tuple[str, bytes]:
    """Return a chart as SVG and as PNG, on white, below its title."""
    import vl_convert

    wide = {**spec(chart), "config": {**theme(), "background": "white"}}
    if wide.get("width") == "container":
        wide["width"] = _PICTURE_WIDTH
    wide["title"] = {"text": title, **({"subtitle": note} if note else {})}
    text = json.dumps(wide)
    for name, colour in _LIGHT.items():
        text = text.replace(name, colour)
    svg: str = vl_convert.vegalite_to_svg(text)
    return svg, vl_convert.svg_to_png(svg, scale=2)
