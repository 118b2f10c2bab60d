"""The course of a search: the best so far, quality over size, calibration and held-out scores."""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptailor.plugins.report.charts import INK, MUTED, error_bars, sized
from gptailor.plugins.report.run_report import ReportedTrial, RunReport
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.quantities import bytes_in_words, shown_number
from gptailor.searching.run.records import SizeRow

if TYPE_CHECKING:
    import altair as alt

_SEARCH, _STARTS = "the search", "starting plans"
_LINES = (_SEARCH, _STARTS)
_LINE_COLOURS = (HUES[0], HUES[4])
_DASHES = ([1, 0], [6, 3])


# --------------------------------------------------------------------------------- the best so far


_SPENDING = ("recipe", "start", "random", "search")
"""The phases of trials that the budget pays for."""


def best_so_far(report: RunReport, phases: Iterable[str]) -> list[tuple[float, ReportedTrial]]:
    """Return the trials that were better than all before, each with the cost up to it.

    Costs are in evaluations on all samples, of trials in these phases. A trial on fewer samples
    adds to the cost, but is never the best; nor is a trial that was repaired in the end, or one
    with nothing dropped.
    """
    steps: list[tuple[float, ReportedTrial]] = []
    spent, best = 0.0, None
    for trial in _fresh(report, phases):
        spent += trial.share
        cut = trial.share == 1.0 and trial.phase != "recipe"
        value = _worth(report, trial) if cut else None
        if value is not None and (best is None or value > best):
            best = value
            steps.append((spent, trial))
    return steps


def _fresh(report: RunReport, phases: Iterable[str]) -> Iterator[ReportedTrial]:
    """Yield each plan's first trial in these phases, even if another phase had it before."""
    numbers: set[int] = set()
    for trial in report.trials:
        number = trial.number if trial.same_as is None else trial.same_as
        if trial.phase in phases and number not in numbers:
            numbers.add(number)
            yield trial


def _worth(report: RunReport, trial: ReportedTrial) -> float | None:
    """Return the number that plans are compared by, more being better: the score, or -loss."""
    if len(report.deciding) == 1:
        [number] = report.deciding
        sign = -1 if report.objectives[number].direction == "minimize" else 1
        return None if trial.values is None else sign * trial.values[number]
    return None if trial.loss is None else -trial.loss


def _shown_worth(report: RunReport, trial: ReportedTrial) -> float | None:
    """Return that number as the axis shows it."""
    if len(report.deciding) == 1:
        return None if trial.values is None else trial.values[report.deciding[0]]
    return trial.loss


def _worth_title(report: RunReport) -> str:
    if len(report.deciding) == 1:
        return report.objectives[report.deciding[0]].title
    return f"mean loss beside the base, {report.loss_unit}"


def progress_section(report: RunReport) -> Section:
    """Return the best so far by cost, beside starting plans."""
    anchor, title = "progress", "The best so far"
    lines = {
        _SEARCH: best_so_far(report, _SPENDING),
        _STARTS: best_so_far(report, ("recipe", "start")),
    }
    if not lines[_SEARCH]:
        return Section(anchor, title, "No plan has a score on all samples yet.")
    spent = math.fsum(trial.share for trial in _fresh(report, _SPENDING))
    rows = []
    for name, steps in lines.items():
        rows += [_step(report, name, cost, trial) for cost, trial in steps]
        if steps:
            rows.append(_step(report, name, max(spent, steps[-1][0]), steps[-1][1]))
    base = [] if len(report.deciding) > 1 else [report.objectives[report.deciding[0]].base]
    better = _better(report)
    words = (
        f"{better}. Trials on fewer samples only add to the cost. The line of the starting plans"
        " shows the best of them."
    )
    table = ShownTable(
        ("line", "evaluations", "trial", _worth_title(report), "from"),
        tuple(
            (name, f"{cost:.4g}", trial.name, _worth_words(report, trial), trial.origin)
            for name, steps in lines.items()
            for cost, trial in steps
        ),
    )
    texts = {t.name: t.text for steps in lines.values() for _, t in steps}
    chart = _progress_chart(
        rows, _worth_title(report), [score for score in base if score is not None]
    )
    return Section(anchor, title, words, chart, table, plans=texts)


def _better(report: RunReport) -> str:
    if len(report.deciding) > 1:
        return "Less is better: a plan's loss compared with the base, the mean of the objectives"
    aim = report.objectives[report.deciding[0]]
    return f"{'Less' if aim.direction == 'minimize' else 'More'} is better"


def _worth_words(report: RunReport, trial: ReportedTrial) -> str:
    if len(report.deciding) > 1:
        return shown_number(trial.loss, trial.loss_error)
    [number] = report.deciding
    errors = trial.stderrs
    value = None if trial.values is None else trial.values[number]
    return shown_number(value, None if errors is None else errors[number])


def _step(report: RunReport, line: str, cost: float, trial: ReportedTrial) -> dict[str, Any]:
    error = None
    if len(report.deciding) == 1 and trial.stderrs is not None:
        error = trial.stderrs[report.deciding[0]]
    value = _shown_worth(report, trial)
    bars = {}
    if value is not None and error is not None and math.isfinite(error):
        bars = {"low": value - error, "high": value + error}
    return {
        "line": line, "cost": cost, "value": value, "plan": trial.name, "origin": trial.origin,
        "made": trial.made or "unknown", "said": _worth_words(report, trial), **bars,
    }  # fmt: skip


def _progress_chart(
    rows: Sequence[Mapping[str, Any]], title: str, base: Sequence[float]
) -> "alt.TopLevelMixin":
    import altair as alt

    names = [name for name in _LINES if any(row["line"] == name for row in rows)]
    at = [_LINES.index(name) for name in names]
    color = alt.Color("line:N", title=None, scale=alt.Scale(
        domain=names, range=[_LINE_COLOURS[i] for i in at]))  # fmt: skip
    dash = alt.StrokeDash("line:N", title=None, scale=alt.Scale(
        domain=names, range=[_DASHES[i] for i in at]))  # fmt: skip
    x = alt.X("cost:Q", title="evaluations on all samples", scale=alt.Scale(domainMin=0))
    scale = alt.Scale(zero=False, nice=True)
    drawn = alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
    tooltip = [alt.Tooltip(f"{name}:N", title=label) for name, label in
               (("line", "of"), ("plan", "trial"), ("said", title), ("made", "its plan"),
                ("origin", "from"))]  # fmt: skip
    layers: list[Any] = [
        drawn.mark_line(interpolate="step-after", strokeWidth=2).encode(
            x=x, y=alt.Y("value:Q", title=title, scale=scale), color=color, strokeDash=dash),
        *error_bars(rows, "low", x=x, y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q",
                    color=color),
        drawn.mark_point(size=40, filled=True).encode(
            x=x, y=alt.Y("value:Q", title=title, scale=scale), color=color, tooltip=tooltip),
    ]  # fmt: skip
    if base:
        uncut = alt.Chart(alt.InlineData(values=[{"value": base[0], "name": "the base, uncut"}]))
        layers += [
            uncut.mark_rule(color=MUTED, strokeDash=[1, 3]).encode(y="value:Q"),
            uncut.mark_text(align="left", baseline="bottom", x=4, dy=-3, color=INK).encode(
                y="value:Q", text="name:N"
            ),
        ]
    return sized(layers)


# -------------------------------------------------------------------------------- size for quality


def curve_section(report: RunReport) -> Section | None:
    """Return the best plan of each size, which `pick` writes; None below two sizes."""
    places = () if report.summary is None else report.summary.sizes
    if len(places) < 2:
        return None
    rows = []
    for place in places:
        trial = report.trials[place.trial]
        about = {
            "plan": trial.name, "layers": place.layers, "parameters": place.parameters,
            "made": trial.made or "unknown", "file": place.file,
            "pick": f"gptailor pick {shlex.quote(report.run)} --parameters {place.parameters}",
        }  # fmt: skip
        for samples, loss, error in (
            (_SEEN, trial.loss, trial.loss_error),
            (_HELD, trial.held_loss, trial.held_loss_error),
        ):
            if loss is not None:
                bars = {}
                if error is not None and math.isfinite(error):
                    bars = {"low": loss - error, "high": loss + error}
                loss_words = f"{shown_number(loss, error)} {report.loss_unit}"
                rows.append({**about, "samples": samples, "loss": loss, "said": loss_words, **bars})
    table = ShownTable(
        ("plan", "layers", "parameters", "weights", "KV cache of a token", "loss", "held out"),
        tuple(_curve_row(report, place) for place in places),
    )
    words = (
        "The best plan of each size, unless a smaller plan is better: the loss compared with"
        f" the base, in {report.loss_unit}. gptailor pick writes one of them. Bars are one standard"
        " error of a single score."
    )
    texts = {report.trials[p.trial].name: report.trials[p.trial].text for p in places}
    chart = _curve_chart(rows, f"loss beside the base, {report.loss_unit}")
    return Section("sizes", "Size for quality", words, chart, table, plans=texts)


_SEEN, _HELD = "the search's own samples", "held out"


def _curve_row(report: RunReport, place: SizeRow) -> tuple[str, ...]:
    trial, cache = report.trials[place.trial], place.kv_cache
    return (
        f"{trial.name} ({place.file})",
        str(place.layers),
        f"{place.parameters:,}",
        bytes_in_words(place.bytes),
        "unknown" if cache is None else bytes_in_words(cache),
        "" if trial.loss is None else shown_number(trial.loss, trial.loss_error),
        "" if trial.held_loss is None else shown_number(trial.held_loss, trial.held_loss_error),
    )


def _curve_chart(rows: Sequence[Mapping[str, Any]], title: str) -> "alt.TopLevelMixin":
    import altair as alt

    kinds = [name for name in (_SEEN, _HELD) if any(row["samples"] == name for row in rows)]
    marks = {_SEEN: (HUES[0], "circle"), _HELD: (HUES[1], "diamond")}
    color = alt.Color("samples:N", title=None, scale=alt.Scale(
        domain=kinds, range=[marks[name][0] for name in kinds]))  # fmt: skip
    shape = alt.Shape("samples:N", title=None, scale=alt.Scale(
        domain=kinds, range=[marks[name][1] for name in kinds]))  # fmt: skip
    scale = alt.Scale(zero=False, nice=True)
    x = alt.X("parameters:Q", title="parameters", scale=scale, axis=alt.Axis(format="~s"))
    drawn = alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
    tooltip = [alt.Tooltip(f"{name}:N", title=label) for name, label in
               (("plan", "trial"), ("layers", "layers"), ("said", "loss"), ("samples", "on"),
                ("made", "its plan"), ("pick", "writes it"))]  # fmt: skip
    y = alt.Y("loss:Q", title=title, scale=scale)
    return sized([
        drawn.mark_line(strokeWidth=1.5, opacity=0.7).encode(x=x, y=y, color=color),
        *error_bars(rows, "low", x=x, y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q",
                    color=color),
        drawn.mark_point(size=70, filled=True, opacity=1).encode(
            x=x, y=y, color=color, shape=shape, tooltip=tooltip),
    ])  # fmt: skip


# --------------------------------------------------------------------- held out beside calibration


def held_section(report: RunReport) -> Section | None:
    """Return held-out losses over the losses on the search's own samples."""
    drawn = [t for t in report.trials if t.loss is not None and t.held_loss is not None and t.full]
    if not drawn:
        return None
    rows = [
        {
            "plan": t.name, "made": t.made or "unknown", "origin": t.origin,
            "seen": t.loss, "held": t.held_loss,
            **_ends("seen", t.loss, t.loss_error), **_ends("held", t.held_loss, t.held_loss_error),
            "seen_said": shown_number(t.loss, t.loss_error),
            "held_said": shown_number(t.held_loss, t.held_loss_error),
        }
        for t in drawn
    ]  # fmt: skip
    table = ShownTable(
        ("trial", "from", "its plan", "the search's own samples", "held out"),
        tuple(tuple(str(row[name]) for name in _HELD_COLUMNS) for row in rows),
    )
    words = (
        "The loss of plans with held-out scores, compared with the base: on the samples of the"
        f" search and on held-out samples, in {report.loss_unit}. A plan above the line is worse on"
        " held-out samples. Bars are one standard error."
    )
    texts = {t.name: t.text for t in drawn}
    return Section("held-out", "Held-out scores", words, _held_chart(rows, report),
                   table, plans=texts)  # fmt: skip


_HELD_COLUMNS = ("plan", "origin", "made", "seen_said", "held_said")


def _ends(name: str, value: float | None, error: float | None) -> dict[str, float]:
    if value is None or error is None or not math.isfinite(error):
        return {}
    return {f"{name}_low": value - error, f"{name}_high": value + error}


def _held_chart(rows: Sequence[Mapping[str, Any]], report: RunReport) -> "alt.TopLevelMixin":
    import altair as alt

    scale = alt.Scale(zero=False, nice=True)
    titles = [f"loss {where}, {report.loss_unit}" for where in ("on its own samples", "held out")]
    drawn = alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
    both = [float(row[name]) for row in rows for name in ("seen", "held")]
    line = alt.Chart(alt.InlineData(values=[{"v": min(both)}, {"v": max(both)}]))

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title=titles[0], scale=scale)

    def y(name: str) -> alt.Y:
        return alt.Y(f"{name}:Q", title=titles[1], scale=scale)

    tooltip = [alt.Tooltip(f"{name}:N", title=label) for name, label in
               (("plan", "trial"), ("made", "its plan"), ("origin", "from"),
                ("seen_said", "its own samples"), ("held_said", "held out"))]  # fmt: skip
    return sized([
        line.mark_line(color=MUTED, strokeDash=[4, 4], strokeWidth=1).encode(x=x("v"), y=y("v")),
        *error_bars(rows, "seen_low", ink=HUES[0], x=x("seen_low"), x2="seen_high:Q", y=y("held")),
        *error_bars(rows, "held_low", ink=HUES[0], x=x("seen"), y=y("held_low"), y2="held_high:Q"),
        drawn.mark_point(size=60, filled=True, opacity=1, color=HUES[0]).encode(
            x=x("seen"), y=y("held"), tooltip=tooltip),
    ])  # fmt: skip
