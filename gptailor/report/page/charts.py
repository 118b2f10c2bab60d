"""What all charts of the report share: colours, sizes, the theme, pictures as files.

Marks say `INK`, `MUTED` and `GRID`, which are the page's and follow its light or dark; in a picture
as a file they are those of the light page.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gptailor.plan.faults import TailorError, listed

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


def theme() -> dict[str, Any]:
    """Vega's configuration: quiet axes, a title above the axis, legends above the chart."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12,
            "titleFontWeight": 600}  # fmt: skip
    return {
        "background": "transparent",
        "font": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "view": {"stroke": None},
        "axis": {**text, "domainColor": MUTED, "tickColor": MUTED, "gridColor": GRID,
                 "labelOverlap": True},
        "legend": {**text, "orient": "top", "labelLimit": 220, "symbolStrokeWidth": 0},
        "header": text,
        "title": {"color": INK, "anchor": "start", "fontSize": 14},
        "text": {"color": INK, "fontSize": 11},
        "point": {"opacity": 0.9, "filled": True, "size": 60},
        "rule": {"color": MUTED},
        "tick": {"color": MUTED},
        "range": {"category": list(HUES)},
    }  # fmt: skip


def require_charts() -> None:
    """Raise TailorError, with the command that installs it, where Vega-Altair isn't there."""
    wanted = {"altair": "altair", "vl_convert": "vl-convert-python"}
    missing = [package for module, package in wanted.items() if find_spec(module) is None]
    if missing:
        raise TailorError(f"a report needs {listed(missing)}: pip install {' '.join(missing)}")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, without the network."""
    import vl_convert  # noqa: PLC0415

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg] # as its documentation has it
    return script


def spec(chart: "alt.TopLevelMixin") -> dict[str, Any]:
    """A chart as Vega-Lite has it, without a configuration of its own."""
    found: dict[str, Any] = chart.to_dict()
    found.pop("config", None)
    return found


def picture(chart: "alt.TopLevelMixin") -> tuple[str, bytes]:
    """A chart as SVG and as PNG, on white."""
    import vl_convert  # noqa: PLC0415

    wide = {**spec(chart), "config": {**theme(), "background": "white"}}
    if wide.get("width") == "container":
        wide["width"] = _PICTURE_WIDTH
    text = json.dumps(wide)
    for name, colour in _LIGHT.items():
        text = text.replace(name, colour)
    svg: str = vl_convert.vegalite_to_svg(text)
    return svg, vl_convert.svg_to_png(svg, scale=2)
