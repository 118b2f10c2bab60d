"""The effects of layers with their errors, and a heat map of dropped windows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptailor.plan.windows import window_words
from gptailor.plugins.report.charts import (
    HEIGHT,
    INK,
    MUTED,
    error_bars,
    sized,
)
from gptailor.plugins.report.effects import Effects, LayerEffect
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.quantities import with_error

if TYPE_CHECKING:
    import altair as alt

_STATES = ("dropped", "kept", "changed")
_COLOURS = {"dropped": HUES[1], "kept": HUES[0], "changed": HUES[2]}
_SHAPES = {"dropped": "cross", "kept": "circle", "changed": "square"}
_WORDS = {
    "dropped": "left out",
    "kept": "the base's own",
    "changed": "of another model, or merged",
}
"""The colour between better and worse, visible on the light page and on the dark page."""
_CELL = 22
"""The least height of a heat map's cell in pixels."""


# ------------------------------------------------------------------------------------ why it stays


def effect_sections(effects: Effects, loss_unit: str) -> list[Section]:
    """Return sections on layers' effects: from the trials, and from the surrogate."""
    sections = []
    if effects.seen:
        many = max(effect.count + effect.others for effect in effects.seen)
        words = (
            "The mean loss of the plans with a layer in this state, minus the mean loss of the"
            f" other plans, in {loss_unit}, of {many} trials on all samples. Above 0 the"
            " state costs quality. Bars are one standard error. A state is shown if two trials have"
            " it and two don't. A search doesn't try plans evenly, so other differences between the"
            " plans count too."
        )
        unit = f"difference of mean loss, {loss_unit}"
        sections.append(
            _effect_section("layers", "Effect of each layer", words, effects.seen, unit)
        )
    if effects.learned:
        words = (
            "The same difference by the surrogate, fitted again to all trials: the mean over plans"
            " drawn evenly from the space, so that other layers cancel out. The unit is the"
            " standard deviation of the losses that it learns. Losses far behind the best are"
            " logarithms. Bars are one standard deviation of its posterior."
        )
        title = "Effect of each layer, by the surrogate"
        unit = "expected difference, standard deviations"
        sections.append(_effect_section("layers-learned", title, words, effects.learned, unit))
    return sections


def _effect_section(
    anchor: str, title: str, words: str, effects: Sequence[LayerEffect], unit: str
) -> Section:
    states = [state for state in _STATES if any(effect.state == state for effect in effects)]
    mirrored = set(states) == {"dropped", "kept"}
    shown = [effect for effect in effects if not (mirrored and effect.state == "kept")]
    note = "To keep it is the mirror image: the table has both. " * mirrored
    note += "; ".join(f"{s}: {_WORDS[s]}" for s in states) + "."
    table = ShownTable(
        ("layer", "state", unit, "plans with it", "without"),
        tuple(
            (
                f"L{effect.layer}",
                effect.state,
                _mean_words(effect),
                str(effect.count),
                str(effect.others),
            )
            for effect in effects
        ),
    )
    drawn = [state for state in states if not (mirrored and state == "kept")]
    chart = _effect_chart(shown, drawn, unit)
    return Section(anchor, title, words, chart, table, note=note)


def _mean_words(effect: LayerEffect) -> str:
    return with_error(effect.mean, effect.error)


def _effect_chart(
    effects: Sequence[LayerEffect], states: Sequence[str], unit: str
) -> "alt.TopLevelMixin":
    import altair as alt

    rows: list[dict[str, Any]] = [
        {
            "layer": effect.layer, "state": effect.state, "mean": effect.mean,
            "said": _mean_words(effect),
            "name": f"L{effect.layer} {effect.state}: {_WORDS[effect.state]}",
            "plans": f"{effect.count} with it, {effect.others} without",
            "low": effect.mean - effect.error, "high": effect.mean + effect.error,
        }
        for effect in effects
    ]  # fmt: skip
    layers = sorted({effect.layer for effect in effects})
    x = alt.X("layer:O", title="layer of the base", axis=alt.Axis(labelAngle=0),
              scale=alt.Scale(domain=list(range(layers[0], layers[-1] + 1))))  # fmt: skip
    offset = alt.XOffset("state:N", sort=list(states))
    color = alt.Color("state:N", title=None, scale=alt.Scale(
        domain=list(states), range=[_COLOURS[s] for s in states]))  # fmt: skip
    shape = alt.Shape("state:N", title=None, scale=alt.Scale(
        domain=list(states), range=[_SHAPES[s] for s in states]))  # fmt: skip
    drawn = alt.Chart(alt.InlineData(values=rows))
    tooltip = [alt.Tooltip(f"{name}:N", title=title) for name, title in
               (("name", "layer"), ("said", unit), ("plans", "plans"))]  # fmt: skip
    y = alt.Y("mean:Q", title=unit)
    zero = alt.Chart(alt.InlineData(values=[{"mean": 0}]))
    return sized([
        zero.mark_rule(color=MUTED).encode(y=y),
        *error_bars(rows, "low", x=x, xOffset=offset, y=alt.Y("low:Q", title=unit), y2="high:Q",
                    color=color),
        drawn.mark_point(size=36, filled=True, opacity=1).encode(
            x=x, xOffset=offset, y=y, color=color, shape=shape, tooltip=tooltip),
    ])  # fmt: skip


# --------------------------------------------------------------------------------------- heat maps


def window_section(effects: Effects, loss_unit: str) -> Section | None:
    """Return the losses of plans without each window of layers."""
    if not effects.windows:
        return None
    best = min(effects.windows, key=lambda window: window.mean)
    rows = [
        {
            "first": window.first, "last": window.last, "value": window.mean,
            "best": window is best, "name": window_words((window.first, window.last)),
            "said": f"mean {window.mean:.4g}, least {window.least:.4g} {loss_unit}, "
                    f"{window.count} plan{'s' * (window.count != 1)}",
        }
        for window in effects.windows
    ]  # fmt: skip
    words = (
        "The loss of plans that drop a window of layers, compared with the base: the mean over"
        f" their trials on all samples, in {loss_unit}. Less is better."
    )
    table = ShownTable(
        ("dropped window", "mean loss", "least", "plans"),
        tuple((window_words((window.first, window.last)), f"{window.mean:.4g}",
               f"{window.least:.4g}", str(window.count)) for window in effects.windows),
    )  # fmt: skip
    chart = _heat_map(rows, f"mean loss, {loss_unit}")
    note = f"Framed: the best, {window_words((best.first, best.last))}."
    return Section("windows", "Dropped windows", words, chart, table, note=note)


def _heat_map(rows: Sequence[Mapping[str, Any]], title: str) -> "alt.TopLevelMixin":
    import altair as alt

    firsts = range(min(r["first"] for r in rows), max(r["first"] for r in rows) + 1)
    lasts = range(min(r["last"] for r in rows), max(r["last"] for r in rows) + 1)
    scale = alt.Scale(scheme="cividis", reverse=True)
    x = alt.X("last:O", title="last layer that leaves",
              scale=alt.Scale(domain=list(lasts)), axis=alt.Axis(labelAngle=0))  # fmt: skip
    y = alt.Y("first:O", title="first layer",
              scale=alt.Scale(domain=list(firsts)))  # fmt: skip
    drawn = alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
    tooltip = [alt.Tooltip("name:N", title="layers"), alt.Tooltip("said:N", title=title)]
    colour = alt.Color("value:Q", title=title, scale=scale,
                       legend=alt.Legend(gradientLength=200, titleLimit=400))  # fmt: skip
    frame = drawn.transform_filter("datum.best").mark_rect(
        filled=False, stroke=INK, strokeWidth=2, fillOpacity=0
    )
    return sized(
        [drawn.mark_rect().encode(x=x, y=y, color=colour, tooltip=tooltip), frame.encode(x=x, y=y)],
        max(HEIGHT // 2, _CELL * len(firsts)),
    )
