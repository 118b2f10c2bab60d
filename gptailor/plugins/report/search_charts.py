"""A search's trials as charts, over size and over objectives."""

import json
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import TYPE_CHECKING, Any, NamedTuple, final

from gptailor.plugins.report.charts import HEIGHT, INK, sized
from gptailor.plugins.report.run_report import ReportedTrial, RunReport
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.quantities import shown_number

if TYPE_CHECKING:
    import altair as alt

_KINDS = {
    "start": "starting plan",
    "random": "random plan",
    "search": "the search's own",
    "final": "repaired in the end",
    "recipe": "a recipe, uncut",
}
"""The purposes of trials in words, by their phases."""

_SHAPES = ("square", "triangle-down", "circle", "diamond", "triangle-up")
_COLOURS = (HUES[4], HUES[7], HUES[0], HUES[2], HUES[1])

_FAR = 3.0
"""The axis ends at this many times the distance between the third quartile and the best,
beyond the third quartile."""


@final
class ShownAxis(NamedTuple):
    """An axis: a field of the rows, a title, and the trials' values."""

    field: str
    title: str
    values: Mapping[int, float]


# -------------------------------------------------------------------------- every trial, over size


def trials_section(report: RunReport) -> Section:
    """Return every trial's loss over its size, the front and the uncut base marked."""
    drawn = [t for t in report.trials if t.loss is not None and t.same_as is None]
    failed = sum(trial.failure is not None for trial in report.trials)
    size = _size_axis(drawn)
    words = [
        f"Each plan's loss compared with the uncut base, in {report.loss_unit}, over its size."
    ]
    if failed:
        words.append(f"{failed} of {len(report.trials)} trials failed. They are only in the table.")
    title, anchor = "Every trial: loss over size", "trials"
    if not drawn:
        return Section(anchor, title, "No trial has a score.", table=_trials_table(report))
    if size is None:
        words.append("The sizes are unknown, so plans are in the order of trials.")
        size = ShownAxis("order", "trial", {t.number: float(t.number) for t in drawn})
    edge, beyond = _edge([trial.loss for trial in drawn if trial.loss is not None])
    if beyond:
        more = "one that loses" if beyond == 1 else f"{beyond} that lose"
        words.append(f"An arrow is over {more} more than {edge:.3g}, where the axis ends.")
    fronts = set(report.front)
    rows = [
        {**_datum(report, trial, fronts), "x": size.values[trial.number],
         "y": trial.loss if edge is None else min(trial.loss or 0.0, edge)}
        for trial in drawn
    ]  # fmt: skip
    y_title = f"loss beside the base, {report.loss_unit}"
    marks = _scatter(_rows_of(rows), _kinds_in(rows), size.title, y_title)
    marks += _arrows([row for row, trial in zip(rows, drawn, strict=True)
                      if edge is not None and (trial.loss or 0.0) > edge])  # fmt: skip
    chart = sized(marks + _base_layers(_base_mark(report, size), [row["x"] for row in rows]))
    plans = {trial.name: trial.text for trial in drawn}
    if plans:
        words.append("A click on a trial shows its plan's text.")
    note = "Less is better. Hollow: not on all samples. Ring: on the front."
    return Section(anchor, title, " ".join(words), chart, _trials_table(report), "", plans, note)


def _datum(report: RunReport, trial: ReportedTrial, front: set[int]) -> dict[str, Any]:
    """Return the fields of a trial that charts use."""
    values = [] if trial.values is None else list(trial.values)
    errors: Sequence[float | None] = trial.stderrs or [None] * len(values)
    numbers = (
        f"{aim.label}: {shown_number(value, error)}"
        for aim, value, error in zip(report.objectives, values, errors, strict=True)
    )
    stopped = ", given up" if trial.stopped else ""
    return {
        "plan": trial.name,
        "kind": _KINDS[trial.phase],
        "origin": trial.origin,
        "made": trial.made or "unknown",
        "scores": "; ".join(numbers),
        "samples": f"{trial.samples} of {report.full}{stopped}",
        "loss": _with_unit(trial.loss, report.loss_unit),
        "whole": trial.full,
        "front": trial.number in front,
    }


def _with_unit(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:.4g} {unit}"


_TOOLTIP = (
    ("plan", "trial"),
    ("made", "its plan"),
    ("scores", "scores"),
    ("loss", "loss"),
    ("samples", "samples"),
    ("origin", "from"),
)


def _tooltip() -> "list[alt.Tooltip]":
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in _TOOLTIP]


def _size_axis(trials: Sequence[ReportedTrial]) -> ShownAxis | None:
    """Return parameters if all are known, else layers; None without trials."""
    layers = {t.number: float(t.layers) for t in trials}
    if not layers:
        return None
    counts = {t.number: t.size.parameters for t in trials if t.size is not None}
    if len(counts) == len(layers):
        unit, name = _power(max(counts.values()))
        values = {number: count / unit for number, count in counts.items()}
        return ShownAxis("parameters", f"parameters{name}", values)
    return ShownAxis("layers", "layers", layers)


def _power(most: int) -> tuple[int, str]:
    for unit, name in ((10**9, ", billions"), (10**6, ", millions"), (10**3, ", thousands")):
        if most >= unit:
            return unit, name
    return 1, ""


def _base_mark(report: RunReport, size: ShownAxis) -> dict[str, Any] | None:
    if size.field == "order":
        return None
    if size.field == "layers":
        return {"x": float(report.layers), "y": 0.0}
    if report.base is None:
        return None
    name = size.title.removeprefix("parameters")
    unit = {", billions": 10**9, ", millions": 10**6, ", thousands": 10**3}.get(name, 1)
    return {"x": report.base.parameters / unit, "y": 0.0}


def _edge(losses: Sequence[float]) -> tuple[float | None, int]:
    """Return the end of the axis, and how many losses are beyond it.

    The end keeps very bad plans from pressing the others flat.
    """
    if len(losses) < 4:
        return None, 0
    upper, best = quantiles(losses, n=4)[2], min(losses)
    edge = max(upper + _FAR * (upper - best), 0.0)
    beyond = sum(loss > edge for loss in losses)
    return (edge, beyond) if beyond else (None, 0)


def _scatter(
    drawn: "alt.Chart", kinds: Sequence[str], x: str | None, y: str | None, room: int = 0
) -> "list[Any]":
    """Return the trials' marks at the rows' x and y: rings for the front, then all `kinds`.

    `room` is the space below the legend.
    """
    import altair as alt

    names = list(_KINDS.values())
    at = [names.index(kind) for kind in names if kind in kinds]
    shown = [names[i] for i in at]
    legend = alt.Legend(offset=18 + room, columns=2 if len(shown) > 2 else len(shown))
    color = alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(
        domain=shown, range=[_COLOURS[i] for i in at]))  # fmt: skip
    shape = alt.Shape("kind:N", title=None, legend=legend, scale=alt.Scale(
        domain=shown, range=[_SHAPES[i] for i in at]))  # fmt: skip
    axis = alt.Axis(tickMinStep=1) if x == "layers" else alt.Undefined
    place: Any = {
        "x": alt.X("x:Q", title=x, axis=axis, scale=alt.Scale(zero=False, padding=14)),
        "y": alt.Y("y:Q", title=y, scale=alt.Scale(zero=False, nice=True)),
    }
    ring = drawn.transform_filter("datum.front").mark_point(
        shape="circle", size=190, filled=False, stroke=INK, strokeWidth=1.5, opacity=1
    )
    return [
        ring.encode(**place),
        drawn.mark_point(size=46, strokeWidth=1.4, filled=False).encode(
            **place, color=color, shape=shape, tooltip=_tooltip(),
            fill=alt.condition("datum.whole", color, alt.value("transparent")),
        ),
    ]  # fmt: skip


def _arrows(rows: Sequence[Mapping[str, Any]]) -> "list[Any]":
    """Return arrows over marks that are beyond the axis."""
    import altair as alt

    if not rows:
        return []
    return [
        _rows_of(rows)
        .mark_text(dy=-11, color=INK)
        .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.value("↑"))
    ]


def _base_layers(at: Mapping[str, float] | None, positions: Sequence[float]) -> "list[Any]":
    """Return the uncut base's mark, its name on the side with more space."""
    import altair as alt

    if at is None:
        return []
    mark = alt.Chart(alt.InlineData(values=[{**at, "name": "the base, uncut"}]))
    label = mark.mark_text(align="left", dx=9, dy=-9, color=INK)
    if 2 * at["x"] > min(*positions, at["x"]) + max(*positions, at["x"]):
        label = mark.mark_text(align="right", dx=-9, dy=-9, color=INK)
    spot: Any = {"x": alt.X("x:Q"), "y": alt.Y("y:Q")}
    point = mark.mark_point(shape="diamond", size=110, filled=True, color=INK, opacity=1)
    return [point.encode(**spot), label.encode(**spot, text="name:N")]


def _rows_of(rows: Sequence[Mapping[str, Any]]) -> "alt.Chart":
    import altair as alt

    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _kinds_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["kind"]) for row in rows))


def _trials_table(report: RunReport) -> ShownTable:
    labels = [aim.title for aim in report.objectives]
    head = ("trial", "from", "plan", "samples", *labels, "loss")
    fronts = set(report.front)
    return ShownTable(head, tuple(_trial_row(report, trial, fronts) for trial in report.trials))


def _trial_row(report: RunReport, trial: ReportedTrial, front: set[int]) -> tuple[str, ...]:
    mark = " (front)" * (trial.number in front)
    plan = trial.made if trial.same_as is None else f"as trial {trial.same_as}"
    if trial.failure is not None:
        cells = [f"failed: {trial.failure}", *[""] * (len(report.objectives) - 1)]
    else:
        errors: Sequence[float | None] = trial.stderrs or [None] * len(report.objectives)
        values = trial.values or [None] * len(report.objectives)
        cells = [shown_number(v, e or None) for v, e in zip(values, errors, strict=True)]
    loss = "" if trial.loss is None else f"{trial.loss:.4g}"
    samples = f"{trial.samples} of {report.full}" + ", given up" * trial.stopped
    return (f"{trial.number}{mark}", trial.origin, plan, samples, *cells, loss)


# ------------------------------------------------------------------------- over several objectives


def objectives_section(report: RunReport) -> Section | None:
    """Return every trial by two chosen objectives; None below two objectives."""
    axes = _axes(report)
    if len(axes) < 2:
        return None
    drawn = [trial for trial in report.trials if trial.full]
    if not drawn:
        return None
    import altair as alt

    fronts = set(report.front)
    rows = [
        {**_datum(report, trial, fronts),
         **{axis.field: axis.values[trial.number] for axis in axes if trial.number in axis.values}}
        for trial in drawn
    ]  # fmt: skip
    fields = [axis.field for axis in axes]
    labels = [axis.title for axis in axes]
    across, up = (
        alt.param(name=name, value=value,
                  bind=alt.binding_select(options=fields, labels=labels, name=f"{label} "))
        for name, value, label in (("across", fields[0], "across:"), ("up", fields[1], "up:"))
    )  # fmt: skip
    title_of = json.dumps({axis.field: axis.title for axis in axes})
    placed = (
        _rows_of(rows)
        .transform_calculate(x="datum[across]", y="datum[up]")
        .transform_filter("isValid(datum.x) && isValid(datum.y)")
    )
    word = _rows_of([{}])
    style: Any = {"fontWeight": 600, "fontSize": 12, "color": INK}
    titles = [
        word.mark_text(align="right", baseline="top", x=alt.ExprRef("width"), y=HEIGHT + 26,
                       text=alt.ExprRef(f"({title_of})[across]"), **style),
        word.mark_text(align="left", baseline="bottom", x=0, y=-8,
                       text=alt.ExprRef(f"({title_of})[up]"), **style),
    ]  # fmt: skip
    layers = _scatter(placed, _kinds_in(rows), None, None, room=12)
    chart = sized([*layers, *titles], params=(across, up))
    best = ", ".join(
        f"{'less' if aim.direction == 'minimize' else 'more'} {aim.label}"
        for aim in report.objectives
    )
    return Section(
        "objectives",
        "Every trial: two objectives",
        f"Trials on all samples. Better is {best}. On the front is a plan that no other one betters"
        " in all objectives. Axes are chosen below the chart.",
        chart,
        _front_table(report),
        plans={t.name: t.text for t in drawn},
        note="Ring: on the front.",
    )


def _axes(report: RunReport) -> list[ShownAxis]:
    """Return the axes of the objectives, sizes last."""
    axes = [
        ShownAxis(
            f"objective_{i}",
            aim.title,
            {t.number: t.values[i] for t in report.trials if t.values is not None},
        )
        for i, aim in enumerate(report.objectives)
    ]
    return sorted(axes, key=lambda axis: report.objectives[int(axis.field[10:])].size)


def _front_table(report: RunReport) -> ShownTable | None:
    chosen = [report.trials[number] for number in report.front if number < len(report.trials)]
    if not chosen:
        return None
    table = _trials_table(report)
    return ShownTable(table.head, tuple(_trial_row(report, trial, set()) for trial in chosen))
