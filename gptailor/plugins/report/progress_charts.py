"""The course of a search: the best so far, quality over size, calibration and held-out scores."""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptailor.plugins.report.charts import INK, MUTED, error_bars, sized
from gptailor.plugins.report.search_charts import is_whole, title_of, trial_title
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.measure import Estimate
from gptailor.reporting.quantities import bytes_in_words, shown_number
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import CurvePoint
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_reading import RunReading

if TYPE_CHECKING:
    import altair as alt

_SEARCH, _STARTS = "the search", "starting plans"
_LINES = (_SEARCH, _STARTS)
_LINE_COLOURS = (HUES[0], HUES[4])
_DASHES = ([1, 0], [6, 3])


# --------------------------------------------------------------------------------- the best so far


_SPENDING = ("recipe", "start", "random", "search")
"""The phases of trials that the budget pays for."""


def best_so_far(run: RunReading, phases: Iterable[str]) -> list[tuple[float, Trial]]:
    """Return the trials that were better than all before, each with the cost up to it.

    Costs are in evaluations on all samples, of trials in these phases. A trial on fewer samples
    adds to the cost, but is never the best; nor is a trial that was repaired in the end, or one
    with nothing dropped.
    """
    steps: list[tuple[float, Trial]] = []
    spent, least = 0.0, math.inf
    for trial in _fresh(run, phases):
        spent += trial.share
        cut = trial.full and trial.request.phase != "recipe"
        lost = run.ledger.loss(trial) if cut else None
        if lost is not None and lost.value < least:
            least = lost.value
            steps.append((spent, trial))
    return steps


def _fresh(run: RunReading, phases: Iterable[str]) -> Iterator[Trial]:
    """Yield each plan's first trial in these phases, even if another phase had it before."""
    numbers: set[int] = set()
    for trial in run.ledger.trials:
        number = trial.number if trial.same_as is None else trial.same_as
        if trial.request.phase in phases and number not in numbers:
            numbers.add(number)
            yield trial


def _worth(run: RunReading, trial: Trial) -> Estimate | None:
    """Return the number that the axis shows: the score by one objective, or the mean loss."""
    if len(run.ledger.deciding) > 1:
        return run.ledger.loss(trial)
    [number] = run.ledger.deciding
    if trial.values is None or trial.stderrs is None:
        return None
    return Estimate(trial.values[number], trial.stderrs[number])


def progress_section(run: RunReading) -> Section:
    """Return the best so far by cost, with the starting plans."""
    anchor, title = "progress", "The best so far"
    lines = {
        _SEARCH: best_so_far(run, _SPENDING),
        _STARTS: best_so_far(run, ("recipe", "start")),
    }
    if not lines[_SEARCH]:
        return Section(anchor, title, "No plan has a score on all samples yet.")
    spent = math.fsum(trial.share for trial in _fresh(run, _SPENDING))
    rows = []
    for name, steps in lines.items():
        rows += [_step(run, name, cost, trial) for cost, trial in steps]
        if steps:
            rows.append(_step(run, name, max(spent, steps[-1][0]), steps[-1][1]))
    ledger, base = run.ledger, []
    axis = f"mean loss compared with the base,  {ledger.loss_unit}"
    better = "Less is better: a plan's loss compared with the base, the mean of the objectives"
    if len(ledger.deciding) == 1:
        [number] = ledger.deciding
        axis = title_of(ledger.aims[number])
        better = f"{'Less' if ledger.aims[number].direction == 'minimize' else 'More'} is better"
        base = [values[number] for values in [ledger.references.get(ledger.full)] if values]
    words = (
        f"{better}. Trials on fewer samples only add to the cost. The line of the starting plans"
        " shows the best of them."
    )
    table = ShownTable(
        ("line", "evaluations", "trial", axis, "from"),
        tuple(
            (name, f"{cost:.4g}", trial_title(trial), _words(_worth(run, trial)),
             origin_words(trial.request.origin))
            for name, steps in lines.items()
            for cost, trial in steps
        ),
    )  # fmt: skip
    texts = {trial_title(t): run.text(t) for steps in lines.values() for _, t in steps}
    chart = _progress_chart(rows, axis, base)
    return Section(anchor, title, words, chart, table, plans=texts)


def _words(number: Estimate | None) -> str:
    return "" if number is None else shown_number(number.value, number.stderr)


def _ends(number: Estimate | None, prefix: str = "") -> dict[str, float]:
    """Return the ends of an error bar, or nothing for an infinite error."""
    if number is None or not math.isfinite(number.stderr):
        return {}
    value, error = number
    return {f"{prefix}low": value - error, f"{prefix}high": value + error}


def _step(run: RunReading, line: str, cost: float, trial: Trial) -> dict[str, Any]:
    worth = _worth(run, trial)
    return {
        "line": line, "cost": cost, "value": worth and worth.value, "plan": trial_title(trial),
        "origin": origin_words(trial.request.origin), "made": run.made(trial),
        "said": _words(worth), **(_ends(worth) if len(run.ledger.deciding) == 1 else {}),
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


def curve_section(run: RunReading) -> Section | None:
    """Return the best plan of each size, which `pick` writes; None below two sizes."""
    if len(run.curve) < 2:
        return None
    rows, cells, texts, unit = [], [], {}, run.ledger.loss_unit
    for point in run.curve:
        trial, size = run.ledger.trials[point.trial], point.size
        losses = {_SEEN: run.ledger.loss(trial), _HELD: run.held_loss(trial)}
        about = {
            "plan": trial_title(trial), "layers": size.layers, "parameters": size.parameters,
            "made": run.made(trial), "file": point.file,
            "pick": f"gptailor pick {shlex.quote(str(run.shown))}"
                    f" --parameters {size.parameters}",
        }  # fmt: skip
        for samples, lost in losses.items():
            if lost is not None:
                said = {"samples": samples, "loss": lost.value, "said": f"{_words(lost)} {unit}"}
                rows.append({**about, **said, **_ends(lost)})
        cells.append(_curve_row(trial, point, losses.values()))
        texts[trial_title(trial)] = run.text(trial)
    head = ("plan", "layers", "parameters", "weights", "KV cache of a token", "loss", "held out")
    words = (
        "The best plan of each size, unless a smaller plan is better: the loss compared with"
        f" the base, in {unit}. gptailor pick writes one of them. Bars are one standard"
        " error of a single score."
    )
    chart, table = (
        _curve_chart(rows, f"loss compared with the base, {unit}"),
        ShownTable(head, tuple(cells)),
    )
    return Section("sizes", "Size for quality", words, chart, table, plans=texts)


_SEEN, _HELD = "the search's own samples", "held out"


def _curve_row(
    trial: Trial, point: CurvePoint, losses: Iterable[Estimate | None]
) -> tuple[str, ...]:
    size, cache = point.size, point.size.kv_cache
    return (
        f"{trial_title(trial)} ({point.file})",
        str(size.layers),
        f"{size.parameters:,}",
        bytes_in_words(size.bytes),
        "unknown" if cache is None else bytes_in_words(cache),
        *map(_words, losses),
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


# --------------------------------------------------------------------- held-out against calibration


def held_section(run: RunReading) -> Section | None:
    """Return held-out losses over the losses on the search's own samples."""
    losses = {t: (run.ledger.loss(t), run.held_loss(t)) for t in run.ledger.trials if is_whole(t)}
    rows, texts, unit = [], {}, run.ledger.loss_unit
    for trial, (seen, held) in losses.items():
        if seen is None or held is None:
            continue
        rows.append({
            "plan": trial_title(trial), "made": run.made(trial),
            "origin": origin_words(trial.request.origin), "seen": seen.value, "held": held.value,
            **_ends(seen, "seen_"), **_ends(held, "held_"),
            "seen_said": _words(seen), "held_said": _words(held),
        })  # fmt: skip
        texts[trial_title(trial)] = run.text(trial)
    if not rows:
        return None
    table = ShownTable(
        ("trial", "from", "its plan", "the search's own samples", "held out"),
        tuple(tuple(str(row[name]) for name in _HELD_COLUMNS) for row in rows),
    )
    words = (
        "The loss of plans with held-out scores, compared with the base: on the samples of the"
        f" search and on held-out samples, in {unit}. A plan above the line is worse on"
        " held-out samples. Bars are one standard error."
    )
    chart = _held_chart(rows, unit)
    return Section("held-out", "Held-out scores", words, chart, table, plans=texts)


_HELD_COLUMNS = ("plan", "origin", "made", "seen_said", "held_said")


def _held_chart(rows: Sequence[Mapping[str, Any]], unit: str) -> "alt.TopLevelMixin":
    import altair as alt

    scale = alt.Scale(zero=False, nice=True)
    titles = [f"loss {where}, {unit}" for where in ("on its own samples", "held out")]
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
