"""The base against a search's result, by objective, with error bars."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptailor.plugins.report.charts import INK, sized
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.measure import finite_or_none
from gptailor.reporting.quantities import shown_number
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_reading import RunReading

if TYPE_CHECKING:
    import altair as alt

_ChartRow = Mapping[str, Any]
"""A row of the chart."""

_CALIBRATION, _HELD = "the search's own samples", "held out"


def scores_sections(run: RunReading) -> list[Section]:
    """Return a section for the objectives of each unit, of a search that has ended."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for i, aim in enumerate(run.ledger.aims):
        if not aim.size:
            kinds.setdefault((aim.unit, aim.direction), []).append(i)
    sections = []
    for number, ((unit, direction), which) in enumerate(kinds.items()):
        rows = [row for i in which for row in _rows(run, i)]
        if rows:
            many = f": {unit or 'score'}" if len(kinds) > 1 else ""
            anchor = "scores" if not number else f"scores-{number + 1}"
            sections.append(_section(anchor, many, unit, direction, rows))
    return sections


def _section(
    anchor: str, which: str, unit: str, direction: str, rows: Sequence[_ChartRow]
) -> Section:
    better = "less" if direction == "minimize" else "more"
    held = any(row["samples"] == _HELD for row in rows)
    unseen = " The search never saw the held-out samples." if held else ""
    unsure = " Bars are one standard error to either side." if any("low" in r for r in rows) else ""
    cells = tuple(
        (str(row["objective"]), str(row["plan"]), str(row["samples"]),
         shown_number(row["value"], row["error"]))
        for row in rows
    )  # fmt: skip
    return Section(
        anchor=anchor,
        title=f"Base and found plan{which}",
        words=f"{better.capitalize()} is better.{unseen}{unsure}",
        chart=_chart(rows, unit),
        table=ShownTable(("objective", "plan", "samples", unit or "score"), cells),
    )


def _plans(run: RunReading) -> Iterator[tuple[str, Trial | None]]:
    yield "base", None
    for trial in run.starts[:1]:
        yield "best start", trial
    if run.verdict is not None:
        yield "found", run.verdict.best


def _rows(run: RunReading, i: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each plan that has a score by an objective, of each kind of samples."""
    for name, trial in _plans(run):
        for samples, value, error in _known_scores(run, trial, i):
            ends = {} if not error else {"low": value - error, "high": value + error}
            yield {"objective": run.ledger.aims[i].short, "plan": name, "samples": samples,
                   "value": value, "error": error, **ends,
                   "said": shown_number(value, error)}  # fmt: skip


def _known_scores(
    run: RunReading, trial: Trial | None, i: int
) -> Iterator[tuple[str, float, float | None]]:
    """Yield a plan's scores by an objective, with their samples and errors.

    The base's score on the search's own samples has no error: others are compared with it.
    """
    base = run.ledger.references.get(run.ledger.full)
    if trial is None and base is not None:
        yield _CALIBRATION, base[i], None
    for samples, scores in (
        (_CALIBRATION, trial and trial.scores),
        (_HELD, run.held_scores(trial)),
    ):
        if scores is not None:
            yield samples, scores.values[i], finite_or_none(scores.stderrs[i])


def _chart(rows: Sequence[_ChartRow], unit: str) -> "alt.LayerChart | alt.FacetChart":
    import altair as alt

    plans = [name for name in ("base", "best start", "found") if name in {r["plan"] for r in rows}]
    kinds = [kind for kind in (_CALIBRATION, _HELD) if kind in {r["samples"] for r in rows}]
    drawn = [{**row, "line": f"{row['objective']} · {row['plan']}"} for row in rows]
    order = list(dict.fromkeys(row["line"] for row in drawn))
    labels = alt.Axis(labelLimit=170, grid=True, labelExpr="split(datum.label, ' · ')")
    y = alt.Y("line:N", sort=order, title=None, axis=labels)
    offset = alt.YOffset("samples:N", sort=kinds)
    axis = alt.Axis(title=unit or "score", tickCount=alt.ExprRef("ceil(width / 80)"))
    scale = alt.Scale(zero=False, nice=True)
    colours = {"base": INK, "best start": HUES[4], "found": HUES[0]}
    colour = alt.Color(
        "plan:N",
        legend=None,
        scale=alt.Scale(domain=plans, range=[colours[plan] for plan in plans]),
    )
    marks = {_CALIBRATION: "circle", _HELD: "diamond"}
    shape = alt.Shape(
        "samples:N",
        title=None,
        legend=alt.Legend(direction="vertical", columns=1),
        scale=alt.Scale(domain=kinds, range=[marks[kind] for kind in kinds]),
    )
    tooltip = [alt.Tooltip(f"{name}:N", title=title) for name, title in
               (("objective", "objective"), ("plan", "plan"), ("samples", "samples"),
                ("said", unit or "score"))]  # fmt: skip
    base = alt.Chart(alt.InlineData(values=drawn))
    return sized([
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(
            y=y, yOffset=offset, x=alt.X("low:Q", scale=scale, axis=axis),
            x2="high:Q", color=colour),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            y=y, yOffset=offset, x=alt.X("value:Q", scale=scale, axis=axis),
            color=colour, shape=shape, tooltip=tooltip),
    ], max(90, 40 * len(order)))  # fmt: skip
