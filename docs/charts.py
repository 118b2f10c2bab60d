"""Draw the documentation's charts, by Vega-Altair, from the figures in docs/pictures/*.json.

    python docs/charts.py             # all whose figures are there
    python docs/charts.py --only healing

Each file of figures says in `what` how they were measured. Colours follow the reader's scheme.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair

PICTURES = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, GREY = "#2f7dd1", "#d9822b", "#1a8f6b", "#8a94a6"
STYLE = """<style>
  text { font-family: system-ui, sans-serif }
  @media (prefers-color-scheme: dark) {
    .marks > rect { fill: #161b22 }
    .role-axis text, .role-legend text { fill: #e6e9ee }
    .role-axis-grid line, .role-axis-domain line, .role-axis-tick line { stroke: #454d59 }
  }
</style>"""
"""Vega writes colours as attributes, over which a style sheet wins."""


def gaps(figures: dict[str, Any]) -> altair.TopLevelMixin:
    """What a bridge would leave: a cell for each layer before a gap and each width."""
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


def repaired(figures: dict[str, Any]) -> altair.TopLevelMixin:
    """What is won back of three cuts: two bars for each."""
    order = [row["cut"] for row in figures["rows"]]
    base = altair.Chart(altair.Data(values=figures["rows"])).encode(
        x=altair.X(
            "won back:Q", title="% of the cut's loss won back", scale=altair.Scale(domain=[0, 100])
        ),
        y=altair.Y("cut:N", title=None, sort=order),
        yOffset=altair.YOffset("how:N", sort=["bridged", "bridged and healed"]),
    )
    bars = base.mark_bar().encode(
        color=altair.Color("how:N", title=None).scale(
            domain=["bridged", "bridged and healed"], range=[BLUE, GREEN]
        )
    )
    numbers = base.mark_text(align="right", dx=-5, color="white").encode(
        text=altair.Text("won back:Q", format=".1f")
    )
    return (bars + numbers).properties(width=560, height=190)


def healing(figures: dict[str, Any]) -> altair.TopLevelMixin:
    """The distance from the teacher on held-out tokens over the tokens that were read."""
    rows = [{"tokens": t, "nats": n} for t, n in figures["held_out"]]
    line = (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=True, color=GREEN)
        .encode(
            x=altair.X("tokens:Q", title="tokens that were learned from"),
            y=altair.Y(
                "nats:Q", title="nats a token from the whole model", scale=altair.Scale(zero=True)
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


def search(figures: dict[str, Any]) -> altair.TopLevelMixin:
    """Every trial at its cost, and the best so far."""
    points = (
        altair.Chart(altair.Data(values=figures["trials"]))
        .mark_point(filled=True, size=45, opacity=0.8)
        .encode(
            x=altair.X("spent:Q", title="evaluations spent"),
            y=altair.Y(
                "loss:Q",
                title="nats a token on the search's samples",
                scale=altair.Scale(zero=False),
            ),
            color=altair.Color("origin:N", title=None).scale(
                domain=["starting plan", "random", "asked for"], range=[GREY, ORANGE, BLUE]
            ),
        )
    )
    best = (
        altair.Chart(altair.Data(values=figures["best"]))
        .mark_line(interpolate="step-after", color=GREEN, strokeWidth=2)
        .encode(x="spent:Q", y="loss:Q")
    )
    return (best + points).properties(width=620, height=260)


CHARTS: dict[str, Callable[[dict[str, Any]], altair.TopLevelMixin]] = {
    one.__name__: one for one in (gaps, repaired, healing, search)
}


def draw(name: str) -> None:
    """Write a chart's picture from its figures."""
    figures = json.loads((PICTURES / f"{name}.json").read_text(encoding="utf-8"))
    chart = CHARTS[name](figures).configure(  # type: ignore[attr-defined]
        background="#ffffff", padding=14, font="system-ui, sans-serif"
    )
    chart = chart.configure_view(stroke=None).configure_axis(
        labelColor="#1f2733", titleColor="#1f2733"
    )
    out = PICTURES / f"{name}.svg"
    chart.save(out, format="svg")
    text = out.read_text(encoding="utf-8")
    end = text.index(">", text.index("<svg")) + 1
    out.write_text(text[:end] + STYLE + text[end:] + "\n", encoding="utf-8")


def main() -> None:
    """Draw what is named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", choices=list(CHARTS), help="one of them; without it: all")
    only = parser.parse_args().only
    there = [name for name in CHARTS if (PICTURES / f"{name}.json").exists()]
    for name in there if only is None else [only]:
        draw(name)


if __name__ == "__main__":
    main()
