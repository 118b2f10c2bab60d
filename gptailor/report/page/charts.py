"""What all charts of the report share: colours, sizes, the theme, pictures as files.

Marks say `INK`, `MUTED` and `GRID`, which are the page's and follow its light or dark; in a picture
as a file they are those of the light page.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from gptailor.plan.optional_packages import require

if TYPE_CHECKING:
    import altair as alt

INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
"""Colours of text and axes, of what stands back, of lines behind, and of what is behind all."""

_LIGHT = {INK: "#1b1f24", MUTED: "#57606a", GRID: "#d8dde3", PAPER: "#ffffff"}

HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a17a00", "#2c93c9", "#7d6fcf", "#7f7f7f")
"""Of models and other kinds, the base's first (after Okabe and Ito, whom colour-blind readers can
tell apart); each has a contrast of 3 with the light page and with the dark one."""

BETTER, WORSE = "#0072b2", "#d55e00"
"""The two ends of what is better or worse than something."""

HEIGHT = 320
"""Of a chart, in pixels; its width is its container's."""

_PICTURE_WIDTH = 760


def hues(names: Sequence[str]) -> dict[str, str]:
    """A colour for each; more than there are start again."""
    return {name: HUES[i % len(HUES)] for i, name in enumerate(names)}


def mixed(parts: Mapping[str, float]) -> str:
    """Colours mixed by their shares, as light is: `#7f5f80`."""
    whole = sum(parts.values())
    light = [0.0, 0.0, 0.0]
    for colour, share in parts.items():
        for i in range(3):
            light[i] += share / whole * (int(colour[1 + 2 * i : 3 + 2 * i], 16) / 255) ** 2.2
    return "#" + "".join(f"{round(255 * one ** (1 / 2.2)):02x}" for one in light)


def sized(
    layers: Sequence[Any], height: int = HEIGHT, params: Sequence["alt.Parameter"] = ()
) -> "alt.LayerChart | alt.FacetChart":
    """Layers above each other, as wide as there is room."""
    import altair as alt

    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart: alt.LayerChart = alt.layer(*layers).add_params(*params)  # type: ignore[assignment] # no facets
    return chart.properties(width="container", height=height, autosize=fit)


def error_bars(
    rows: Sequence[Mapping[str, Any]], low: str, *, ink: str | None = None, **encoded: Any
) -> "list[alt.Chart]":
    """Bars of the rows that have an error, and so a field `low`; none where there are none."""
    import altair as alt

    there = [dict(row) for row in rows if low in row]
    if not there:
        return []
    mark = alt.MarkDef(type="rule", opacity=0.8, color=alt.Undefined if ink is None else ink)
    return [alt.Chart(alt.InlineData(values=there), mark=mark).encode(**encoded)]


_COLUMNS = "max(1, floor(((width ? containerSize()[0] : 0) || 760) / 170))"
"""How many entries of a legend stand in a line: what is there, which is known before the layout."""


def theme() -> dict[str, Any]:
    """Vega's configuration: quiet axes, a title above the axis, legends above the chart."""
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
    """Raise MissingPackageError, with the command that installs it, where Altair isn't there."""
    require("report", "a report")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, without the network."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg] # as its documentation has it
    return script


def spec(chart: "alt.TopLevelMixin") -> dict[str, Any]:
    """A chart as Vega-Lite has it, without a configuration of its own, nor the title that the page
    has above it.
    """
    found: dict[str, Any] = chart.to_dict()
    for name in ("config", "title"):
        found.pop(name, None)
    if isinstance(fit := found.get("autosize"), dict):
        fit["resize"] = True  # a legend takes more lines in a narrower window
    return found


def picture(chart: "alt.TopLevelMixin", title: str, note: str = "") -> tuple[str, bytes]:
    """A chart as SVG and as PNG, on white, under its title."""
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
