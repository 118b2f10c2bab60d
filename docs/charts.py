"""Draw the documentation's charts with Vega-Altair from the figures in docs/pictures/*.json.

    python docs/charts.py             # every chart with a file of figures
    python docs/charts.py --only healing

The field `what` of each file describes the measurement. Colours follow the reader's scheme.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair

PICTURES = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY, INK = "#2f7dd1", "#d9822b", "#1a8f6b", "#8a94a6", "#1f2733"
Chart = altair.Chart | altair.LayerChart
PLACES = {"won back": ".1f", "lost": ".3f"}
"""Formats of the numbers at bars."""
STYLE = """<style>
  text { font-family: system-ui, sans-serif }
  @media (prefers-color-scheme: dark) {
    .marks > rect { fill: #161b22 }
    .role-axis text, .role-legend text, .mark-text text { fill: #e6e9ee }
    .role-axis-grid line, .role-axis-domain line, .role-axis-tick line { stroke: #454d59 }
  }
</style>"""
"""Style sheet that overrides the colours in Vega's attributes."""


def gaps(figures: dict[str, Any]) -> Chart:
    """Return a heat map of the error after a bridge, by the layer before the gap and its width."""
    rows = [
        {"after": after, "width": width, "left": left}
        for after, row in enumerate(figures["left"])
        for width, left in enumerate(row, 1)
    ]
    colour = altair.Color("left:Q", title="left wrong").scale(
        scheme="blues", domain=[0, figures["darkest"]], clamp=True
    )
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_rect()
        .encode(
            x=altair.X(
                "after:O", title="the last layer before the gap", axis=altair.Axis(labelAngle=0)
            ),
            y=altair.Y("width:O", title="layers in the gap", sort="descending"),
            color=colour,
        )
        .properties(width=680, height=220)
    )


def grouped(rows: list[dict[str, Any]], value: str, title: str, colours: dict[str, str]) -> Chart:
    """Return bars grouped by cut, one for each method, with a number at each end."""
    base = altair.Chart(altair.Data(values=rows)).encode(
        x=altair.X(f"{value}:Q", title=title),
        y=altair.Y("cut:N", title=None, sort=list(dict.fromkeys(row["cut"] for row in rows))),
        yOffset=altair.YOffset("how:N", sort=list(colours)),
    )
    scale = altair.Scale(domain=list(colours), range=list(colours.values()))
    legend = altair.Legend(orient="bottom", columns=4, labelLimit=240, columnPadding=24)
    bars = base.mark_bar().encode(
        color=altair.Color("how:N", title=None, scale=scale, legend=legend)
    )
    numbers = base.mark_text(align="left", dx=4, color=INK).encode(
        text=altair.Text(f"{value}:Q", format=PLACES[value])
    )
    height = len(colours) * 15 + 18
    return (bars + numbers).properties(width=600, height=height * len({row["cut"] for row in rows}))


def repaired(figures: dict[str, Any]) -> Chart:
    """Return the chart of the recovered share of three cuts."""
    colours = {"bridged": BLUE, "bridged and healed": GREEN}
    return grouped(figures["rows"], "won back", "% of the cut's loss won back", colours)


def results(figures: dict[str, Any]) -> Chart:
    """Return the chart of the losses of three cuts, by method."""
    colours = {
        "ShortGPT": GREY,
        "searched": ORANGE,
        "searched, bridged": BLUE,
        "searched, bridged, healed": GREEN,
    }
    return grouped(figures["rows"], "lost", "nats a token lost", colours)


def healing(figures: dict[str, Any]) -> Chart:
    """Return the chart of the held-out distance from the teacher over the training tokens."""
    rows = [{"tokens": t, "nats": n} for t, n in figures["held_out"]]
    line = (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=True, color=GREEN)
        .encode(
            x=altair.X(
                "tokens:Q", title="tokens that were learned from", axis=altair.Axis(tickCount=6)
            ),
            y=altair.Y(
                "nats:Q", title="nats a token from the uncut model", scale=altair.Scale(zero=True)
            ),
        )
    )
    bare = [
        {"nats": figures["bare"], "said": "bare"},
        {"nats": figures["bridged"], "said": "bridged"},
    ]
    rules = altair.Chart(altair.Data(values=bare)).mark_rule(strokeDash=[5, 4], color=GREY)
    words = altair.Chart(altair.Data(values=bare)).mark_text(
        align="right", baseline="bottom", x=618, dy=-3, color=GREY
    )
    rules, words = rules.encode(y="nats:Q"), words.encode(y="nats:Q", text="said:N")
    return (rules + words + line).properties(width=620, height=240)


def search(figures: dict[str, Any]) -> Chart:
    """Return the chart of the remaining gap between the best starting plan and the optimum."""
    rows = [
        {"evaluations": spent, "left": left, "how": how}
        for how, line in figures["left"].items()
        for spent, left in zip(figures["evaluations"], line, strict=True)
    ]
    scale = altair.Scale(domain=list(figures["left"]), range=[GREEN, GREY])
    legend = altair.Legend(orient="bottom", labelLimit=240, columnPadding=24)
    spent = altair.Scale(domain=[0, max(figures["evaluations"])])
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=altair.X("evaluations:Q", title="evaluations on all samples", scale=spent),
            y=altair.Y("left:Q", title="share of the gap left", scale=altair.Scale(domain=[0, 1])),
            color=altair.Color("how:N", title=None, scale=scale, legend=legend),
        )
        .properties(width=600, height=220)
    )


CHARTS: dict[str, Callable[[dict[str, Any]], Chart]] = {
    one.__name__: one for one in (gaps, repaired, healing, results, search)
}


def draw(name: str) -> None:
    """Write a chart's picture from its figures."""
    figures = json.loads((PICTURES / f"{name}.json").read_text(encoding="utf-8"))
    chart = CHARTS[name](figures).configure(
        background="#ffffff", padding=14, font="system-ui, sans-serif"
    )
    chart = chart.configure_view(stroke=None).configure_axis(labelColor=INK, titleColor=INK)
    out = PICTURES / f"{name}.svg"
    chart.save(out, format="svg")
    text = out.read_text(encoding="utf-8")
    end = text.index(">", text.index("<svg")) + 1
    out.write_text(text[:end] + STYLE + text[end:] + "\n", encoding="utf-8")


def main() -> None:
    """Draw the chart that `--only` names, or all charts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", choices=list(CHARTS), help="the chart to draw (all)")
    only = parser.parse_args().only
    there = [name for name in CHARTS if (PICTURES / f"{name}.json").exists()]
    for name in there if only is None else [only]:
        draw(name)


if __name__ == "__main__":
    main()
