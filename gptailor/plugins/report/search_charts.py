"""A search's trials as charts, over size and over objectives."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import TYPE_CHECKING, Any, NamedTuple, final

from gptailor.plugins.report.charts import HEIGHT, INK, sized
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.quantities import shown_number
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run_reading import RunReading

if TYPE_CHECKING:
    import altair as alt

_KINDS = {
    "start": "starting plan",
    "random": "random plan",
    "search": "the search's own",
    "final": "repaired in the end",
    "recipe": "an uncut plan",
}
"""The purposes of trials in words, by their phases."""

_SHAPES = ("square", "triangle-down", "circle", "diamond", "triangle-up")
_COLOURS = (HUES[4], HUES[7], HUES[0], HUES[2], HUES[1])

_FAR = 3.0
"""The axis ends at this many times the distance between the third quartile and the best,
beyond the third quartile."""


def trial_title(trial: Trial) -> str:
    """Return `trial 12`."""
    return f"trial {trial.number}"


def title_of(aim: Aim) -> str:
    """Return `nll, nats`, or `parameters` if the short name is the unit."""
    return f"{aim.short}, {aim.unit}" if aim.unit not in ("", aim.short) else aim.short


def is_whole(trial: Trial) -> bool:
    """Return whether a trial was evaluated itself, on all samples, and has a score."""
    return trial.full and trial.values is not None and trial.same_as is None


@final
class ShownAxis(NamedTuple):
    """An axis: a field of the rows, a title, and the trials' values."""

    field: str
    title: str
    values: Mapping[int, float]


# -------------------------------------------------------------------------- every trial, over size


def trials_section(run: RunReading) -> Section:
    """Return every trial's loss over its size, the front and the uncut base marked."""
    trials, unit = run.ledger.trials, run.ledger.loss_unit
    losses = {
        trial: lost.value
        for trial in trials
        if trial.same_as is None and (lost := run.ledger.loss(trial)) is not None
    }
    drawn, failed = [*losses], sum(trial.failure is not None for trial in trials)
    size = _size_axis(run, drawn)
    words = [f"Each plan's loss compared with the uncut base, in {unit}, over its size."]
    if failed:
        words.append(f"{failed} of {len(trials)} trials failed. They are only in the table.")
    title, anchor = "Every trial: loss over size", "trials"
    if size is None:
        return Section(anchor, title, "No trial has a score.", table=_trials_table(run, trials))
    edge, beyond = _edge([*losses.values()])
    if beyond:
        more = "a plan that loses" if beyond == 1 else f"{beyond} plans that lose"
        words.append(f"An arrow is over {more} more than {edge:.3g}, where the axis ends.")
    end = math.inf if edge is None else edge
    rows = [
        {**_datum(run, trial), "x": size.values[trial.number], "y": min(lost, end)}
        for trial, lost in losses.items()
    ]
    marks = _scatter(
        _rows_of(rows), _kinds_in(rows), size.title, f"loss compared with the base, {unit}"
    )
    marks += _arrows([row for row, lost in zip(rows, losses.values(), strict=True) if lost > end])
    chart = sized(marks + _base_layers(_base_mark(run, size), [row["x"] for row in rows]))
    words.append("A click on a trial shows its plan's text.")
    plans = {trial_title(trial): run.text(trial) for trial in drawn}
    note = "Less is better. Hollow: not on all samples. Ring: on the front."
    table = _trials_table(run, trials)
    return Section(anchor, title, " ".join(words), chart, table, "", plans, note)


def _datum(run: RunReading, trial: Trial) -> dict[str, Any]:
    """Return the fields of a trial that charts use."""
    lost, aims = run.ledger.loss(trial), run.ledger.aims
    scores = zip(aims, trial.values or (), trial.stderrs or (), strict=bool(trial.values))
    numbers = (f"{aim.short}: {shown_number(value, error)}" for aim, value, error in scores)
    return {
        "plan": trial_title(trial),
        "kind": _KINDS[trial.request.phase],
        "origin": origin_words(trial.request.origin),
        "made": run.made(trial),
        "scores": "; ".join(numbers),
        "samples": _samples(run, trial),
        "loss": "unknown" if lost is None else f"{lost.value:.4g} {run.ledger.loss_unit}",
        "whole": is_whole(trial),
        "front": trial in run.front,
    }


def _samples(run: RunReading, trial: Trial) -> str:
    """Return `16 of 64, given up`."""
    stopped = ", given up" * (trial.stopped is not None)
    return f"{trial.samples} of {run.ledger.full}{stopped}"


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


def _size_axis(run: RunReading, trials: Sequence[Trial]) -> ShownAxis | None:
    """Return parameters if all are known, else layers; None without trials."""
    if not trials:
        return None
    sizes = {t.number: size for t in trials if (size := run.sizes.get(t.plan)) is not None}
    if len(sizes) == len(trials):
        unit, name = _power(max(size.parameters for size in sizes.values()))
        values = {number: size.parameters / unit for number, size in sizes.items()}
        return ShownAxis("parameters", f"parameters{name}", values)
    return ShownAxis("layers", "layers", {t.number: float(run.layers(t)) for t in trials})


def _power(most: int) -> tuple[int, str]:
    for unit, name in ((10**9, ", billions"), (10**6, ", millions"), (10**3, ", thousands")):
        if most >= unit:
            return unit, name
    return 1, ""


def _base_mark(run: RunReading, size: ShownAxis) -> dict[str, Any] | None:
    if size.field == "layers":
        return {"x": float(run.record.layers), "y": 0.0}
    written = run.notes.sizes
    if written is None:
        return None
    name = size.title.removeprefix("parameters")
    unit = {", billions": 10**9, ", millions": 10**6, ", thousands": 10**3}.get(name, 1)
    return {"x": written.base.parameters / unit, "y": 0.0}


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


def _trials_table(run: RunReading, trials: Sequence[Trial], mark: str = " (front)") -> ShownTable:
    labels = [title_of(aim) for aim in run.ledger.aims]
    head = ("trial", "from", "plan", "samples", *labels, "loss")
    return ShownTable(head, tuple(_trial_row(run, trial, mark) for trial in trials))


def _trial_row(run: RunReading, trial: Trial, mark: str) -> tuple[str, ...]:
    plan = run.made(trial) if trial.same_as is None else f"same plan as trial {trial.same_as}"
    if trial.values is None or trial.stderrs is None:
        cells = [f"failed: {trial.failure}", *[""] * (len(run.ledger.aims) - 1)]
    else:
        scores = zip(trial.values, trial.stderrs, strict=True)
        cells = [shown_number(value, error or None) for value, error in scores]
    lost = run.ledger.loss(trial)
    number = f"{trial.number}{mark * (trial in run.front)}"
    loss = "" if lost is None else f"{lost.value:.4g}"
    origin = origin_words(trial.request.origin)
    return (number, origin, plan, _samples(run, trial), *cells, loss)


# ------------------------------------------------------------------------- over several objectives


def objectives_section(run: RunReading) -> Section | None:
    """Return every trial by two chosen objectives; None below two objectives."""
    axes = _axes(run.ledger)
    if len(axes) < 2:
        return None
    drawn = [trial for trial in run.ledger.trials if is_whole(trial)]
    if not drawn:
        return None
    import altair as alt

    rows = [
        {**_datum(run, trial),
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
    titles_of = json.dumps({axis.field: axis.title for axis in axes})
    placed = (
        _rows_of(rows)
        .transform_calculate(x="datum[across]", y="datum[up]")
        .transform_filter("isValid(datum.x) && isValid(datum.y)")
    )
    word = _rows_of([{}])
    style: Any = {"fontWeight": 600, "fontSize": 12, "color": INK}
    titles = [
        word.mark_text(align="right", baseline="top", x=alt.ExprRef("width"), y=HEIGHT + 26,
                       text=alt.ExprRef(f"({titles_of})[across]"), **style),
        word.mark_text(align="left", baseline="bottom", x=0, y=-8,
                       text=alt.ExprRef(f"({titles_of})[up]"), **style),
    ]  # fmt: skip
    layers = _scatter(placed, _kinds_in(rows), None, None, room=12)
    chart = sized([*layers, *titles], params=(across, up))
    best = ", ".join(
        f"{'less' if aim.direction == 'minimize' else 'more'} {aim.short}"
        for aim in run.ledger.aims
    )
    return Section(
        "objectives",
        "Every trial: two objectives",
        f"Trials on all samples. Better is {best}. On the front is a plan that no other plan beats"
        " in all objectives. Axes are chosen below the chart.",
        chart,
        _trials_table(run, run.front, ""),
        plans={trial_title(t): run.text(t) for t in drawn},
        note="Ring: on the front.",
    )


def _axes(ledger: Ledger) -> list[ShownAxis]:
    """Return the axes of the objectives, sizes last."""
    axes = [
        ShownAxis(
            f"objective_{i}",
            title_of(aim),
            {t.number: t.values[i] for t in ledger.trials if t.values is not None},
        )
        for i, aim in enumerate(ledger.aims)
    ]
    return sorted(axes, key=lambda axis: ledger.aims[int(axis.field[10:])].size)
