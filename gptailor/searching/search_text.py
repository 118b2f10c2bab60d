"""A search's result in words: its summary as a page and for a terminal."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from gptailor.plan.stage import Stage
from gptailor.reporting.measure import UNSIZED, BesideBase
from gptailor.reporting.quantities import bytes_in_words, percent, shown_number, with_error
from gptailor.reporting.table import table_lines
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.objective_mean import mean_of_objectives
from gptailor.searching.run.records import (
    Aim,
    GainRecord,
    HeldOutFailure,
    SearchSummary,
    SummaryRow,
    VerdictRecord,
    WithScores,
)


def markdown(summary: SearchSummary) -> str:
    """Return the summary as a page."""
    lines = [f"# {summary.plan}", "", ended_words(summary), "", verdict_words(summary), ""]
    for i, aim in _tabled(summary):
        lines += [*_page_table(*_scores(summary, i, f"`{aim.name}` ({_better(aim)})")), ""]
    if (mean := mean_of_objectives(summary)) is not None:
        name = f"{mean.objectives[0].name} ({_better(mean.objectives[0])})"
        lines += [*_page_table(*_scores(mean, 0, name)), ""]
    if len(summary.sizes) > 1:
        lines += ["## Quality over size", "", *_page_table(*_sizes(summary)), ""]
    parts = (_required(summary), _final(summary))
    for part in (
        *([f"- {line}" for line in part] for part in parts),
        [*_stages(summary)],
        [*_left_out(summary)],
        [*_at_bounds(summary)],
        [*_random(summary)],
        [*_spent(summary)],
        [*_commands(summary)],
    ):
        lines += [*part, ""] if part else []
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(summary: SearchSummary, width: int, encoding: str | None = None) -> Iterator[str]:
    """Yield the summary's lines for a terminal with `width` columns."""
    yield ended_words(summary)
    for i, aim in _tabled(summary):
        yield ""
        yield f"{aim.name}: {_better(aim)}{_held(summary, i)}"
        yield from table_lines(*_scores(summary, i, ""), width, encoding)
    if (mean := mean_of_objectives(summary)) is not None:
        yield ""
        yield f"{mean.objectives[0].name}: {_better(mean.objectives[0])}"
        yield from table_lines(*_scores(mean, 0, ""), width, encoding)
    if len(summary.sizes) > 1:
        yield from ("", "quality over size: gptailor pick writes one of these")
        yield from table_lines(*_sizes(summary), width, encoding)
    results = _required(summary), _final(summary)
    notes = _stages(summary), _left_out(summary), _at_bounds(summary), _random(summary)
    for part in (*results, *notes, _spent(summary)):
        for n, line in enumerate(part):
            yield from [line] if n else ["", line]
    yield from ("", verdict_words(summary))
    for n, line in enumerate(_commands(summary)):
        yield from [line] if n else ["", line]


def _tabled(summary: SearchSummary) -> list[tuple[int, Aim]]:
    """Return the objectives that have their own table.

    Sizes from headers are in the table of sizes.
    """
    aims = enumerate(summary.objectives)
    return [(i, aim) for i, aim in aims if aim.unit not in ("parameters", "bytes", "bytes a token")]


def _page_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *body = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return [first, "|---|" + "--:|" * (len(head) - 1), *body]


# -------------------------------------------------------------------------------------- the tables


def ended_words(summary: SearchSummary) -> str:
    """Return the number of trials, their cost, and why the search ended."""
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new any more",
        "interrupted": "; interrupted, and the same command goes on",
    }
    failed = f", {summary.failed} failed" if summary.failed else ""
    hits = f", {summary.hits} with a plan seen before" if summary.hits else ""
    part = f", with {summary.cost:.3g} times all samples" if summary.cost != summary.trials else ""
    late, stopped = summary.late, summary.stopped
    times = "once" if late == 1 else f"{late} times"
    order = f"; a worker wasn't waited for {times}: the same seed may give others" if late else ""
    spared = f", {stopped} given up early (spared: {summary.spared:g})" if stopped else ""
    by = f"; with {', '.join(summary.packages)}" if summary.packages else ""
    ended = f"{ends[summary.ended]}{order}{by}"
    return f"{_count(summary.trials, 'trial')}{part}{failed}{hits}{spared}{ended}"


def _count(count: float, noun: str) -> str:
    """Return `1 plan`, `2 plans`."""
    return f"{count:g} {noun}{'s' * (count != 1)}"


def _stages(summary: SearchSummary) -> Iterator[str]:
    """Describe what the scores of each stage are scores of."""
    repaired = "healed" if summary.heals else "bridged" if summary.bridge is not None else None
    were = "was" if summary.recipes == 1 else "were"
    if repaired is None:
        yield "All scores are of bare cuts, because the plan has neither 'bridge' nor 'heal'."
    elif summary.recipe is not None:
        yield (
            f"{_count(summary.recipes, 'recipe')} {were} compared without drops, because a repaired"
            " plan keeps the loss of its recipe. Then cuts of the best recipe were compared. The"
            f" best plans, and starting plans for comparison, were {repaired} at the end."
        )
    else:
        yield (
            "Only cuts were compared, because the plan has no open recipe, or repeats layers."
            f" The best plans were {repaired} at the end."
        )
    if (worth := summary.repair) is not None:
        yield (
            f"A loss of 1 between plans before they were {repaired} was {worth.slope:.2g} after it"
            f" ({worth.plans} plans, rank correlation {worth.correlation:.2f})."
        )


def _left_out(summary: SearchSummary) -> Iterator[str]:
    if names := summary.left_out:
        plans = ", ".join(names)
        yield f"Starting plans beyond the budget: {plans}. A larger `--trials` tries more."
    if beyond := summary.beyond:
        yield f"Starting plans beyond what is required of sizes: {', '.join(beyond)}."


_MOST_AT_BOUNDS = 8
"""The most numbers at their bounds that the summary lists."""


def _at_bounds(summary: SearchSummary) -> Iterator[str]:
    """Name the best plan's numbers that are at a bound of their interval."""
    numbers = summary.at_bounds
    if not numbers:
        return
    texts = [
        f"{number.name} = {number.value:g}, the {number.bound} end"
        for number in numbers[:_MOST_AT_BOUNDS]
    ]
    more = len(numbers) - len(texts)
    texts += [f"and {more} more"] if more else []
    yield (
        f"Numbers of the best plan at a bound of their interval: {'; '.join(texts)}."
        " A wider interval may contain a better plan."
    )


def _better(aim: Aim) -> str:
    return "less is better" if aim.direction == "minimize" else "more is better"


def _held(summary: SearchSummary, i: int) -> str:
    count = summary.held[i] if summary.held else 0
    return f"; held out: {count} samples" if count else "; nothing was held out"


def _rows(summary: SearchSummary) -> list[tuple[str, WithScores]]:
    """Return names and rows: the base uncut, starting plans, random ones, the plan found."""
    rows: list[tuple[str, WithScores]] = [("the base, uncut", summary.base)]
    if summary.recipe is not None:
        rows.append((f"the best recipe, {summary.recipe.origin}", summary.recipe))
    rows += [(f"{row.origin}{_cut(row)}", row) for row in summary.starts]
    drawn, best, found_row = summary.random, summary.best, summary.found
    if drawn.best is not None:
        name = f"the best of {_count(drawn.trials, 'random plan')}{_cut(drawn.best)}"
        rows.append((name, drawn.best))
    if found_row is not None:
        same = best is not None and best.trial == found_row.trial
        file = summary.best_file if same else f"trial {found_row.trial}"
        rows.append((f"found: {file}{_cut(found_row)}", found_row))
        if best is not None and not same:
            rows.append((f"simpler: {summary.best_file}{_cut(best)}", best))
    return rows


def _cut(row: SummaryRow) -> str:
    return cut_remark(row.dropped, row.sizes)


def cut_remark(dropped: str, sizes: str) -> str:
    """Return `, drop L3..L5, width 1280` for a plan's dropped layers and open sizes, or nothing."""
    return (f", drop {dropped}" if dropped else "") + (f", {sizes}" if sizes else "")


def _scores(summary: SearchSummary, i: int, name: str) -> tuple[list[str], list[list[str]]]:
    lost = _lost_head(summary.objectives[i])
    head = [name, "score", lost, "held out", lost]
    return head, [_cells(name, row, i, summary) for name, row in _rows(summary)]


def _lost_head(aim: Aim) -> str:
    """Return the head of the column beside a score: shares of counts, else losses."""
    share = aim.size or (aim.direction == "maximize" and aim.unit in UNSIZED)
    return "of the base's" if share else f"{aim.unit} lost".strip()


def _lost_cell(aim: Aim, value: float | None, base: float | None) -> str:
    """Return a number for that column: a loss, or a share."""
    lost = beside_base(aim, value, base)
    if lost is None:
        return ""
    if lost.share is not None:
        return percent(lost.share)
    return f"{'-' if lost.loss < 0 else ''}{_size_of_loss(lost.loss)}"


def _cells(name: str, row: WithScores, i: int, summary: SearchSummary) -> list[str]:
    base, aim = summary.base, summary.objectives[i]
    uncut, held = row is base, row.held_scores
    value, held_value = _at(row.values, i), _held_value(row, i)
    held_base = _held_value(base, i)
    stage = _stage_of(row) if isinstance(row, SummaryRow) else ""
    unseen = "failed" if isinstance(row.held, HeldOutFailure) else ""
    if held is not None:
        unseen = shown_number(held_value, held.stderrs[i])
    return [
        name + (f" ({stage})" if stage else ""),
        shown_number(value, _at(row.stderrs, i)),
        "" if uncut else _lost_cell(aim, value, _at(base.values, i)),
        unseen,
        "" if uncut else _lost_cell(aim, held_value, held_base),
    ]


def _stage_of(row: SummaryRow) -> str:
    return stage_words(row.stage, row.before, row.values)


def _held_value(row: WithScores, i: int) -> float | None:
    return None if row.held_scores is None else row.held_scores.values[i]


def _at(values: Sequence[float | None] | None, i: int) -> float | None:
    return None if values is None else values[i]


def beside_base(aim: Aim, value: float | None, base: float | None) -> BesideBase | None:
    """Return a score beside the base's by an objective; None without a comparison."""
    if value is None or base is None or aim.scale != "base":
        return None
    if aim.size:
        return BesideBase(value / base) if base else None
    return BesideBase.of(aim.direction, aim.unit, value, base)


def beside_base_words(beside: BesideBase | None, of_base: str = "") -> str:
    """Return `78.4 %` with the words `of_base`, or `0.803 nats lost`; "" if unknown."""
    if beside is None:
        return ""
    if beside.share is not None:
        return f"{percent(beside.share)}{of_base}"
    way = "won" if beside.loss < 0 else "lost"
    return " ".join(filter(None, (_size_of_loss(beside.loss), beside.unit, way)))


def _size_of_loss(loss: float) -> str:
    return f"{abs(loss):.3g}" if abs(loss) < 1 else f"{abs(loss):.4g}"


def _sizes(summary: SearchSummary) -> tuple[list[str], list[list[str]]]:
    """Return a row for each size: the best plan of that size, beside the base."""
    aims = [i for i, _ in _tabled(summary)]
    beside = [_lost_head(summary.objectives[i]) for i in aims]
    several = [f" {n}" for n in range(1, len(aims) + 1)] if len(aims) > 1 else [""] * len(aims)
    head = ["plan", "layers", "parameters", "weights", "KV/token"]
    for lost, n in zip(beside, several, strict=True):
        head += [f"score{n}", f"{'lost' if lost.endswith('lost') else lost}{n}", f"held out{n}"]
    rows = []
    for row in summary.sizes:
        name = row.file.removeprefix("front/").removesuffix(".tailor")
        cells = [name, str(row.layers), f"{row.parameters:,}", bytes_in_words(row.bytes),
                 bytes_in_words(row.kv_cache)]  # fmt: skip
        for i in aims:
            _, score, lost, held, _ = _cells("", row, i, summary)
            cells += [score, lost, held]
        rows.append(cells)
    return head, rows


# ------------------------------------------------------------------------------------ in sentences


def verdict_words(summary: SearchSummary) -> str:
    """Compare the found plan with the best plan that needs no search."""
    verdict, found_row, best = summary.verdict, summary.found, summary.best
    if verdict is None or found_row is None or best is None:
        unmet = summary.required is not None and not summary.required.met
        return "There is no best plan." if unmet else "No plan has a score."
    sizes = any(aim.size for aim in summary.objectives)
    several, numbers = sum(not aim.size for aim in summary.objectives), verdict.numbers
    means = f", mean of {len(numbers)} objectives" if len(numbers) > 1 else ""
    if len(numbers) < several:
        means = f", by {summary.objectives[numbers[0]].name} alone"
    where = "on held-out samples" if verdict.held else "on the samples that it was chosen by"
    paired = f" ({where}, in pairs{means})"
    base, against = _beside_the_base(verdict), verdict.against
    if against is None:
        other = "repaired alike and no larger" if sizes else "repaired alike"
        return (
            f"No starting plan {other} meets all requirements, so it is compared with none.{base}"
        )
    gain, name = _gain(against, verdict.unit), against.origin
    if verdict.better:
        many = verdict.starts
        which = f"the best of {many} starting plans, '{name}'" if many > 1 else f"'{name}'"
        few = _too_few(summary, verdict, found_row)
        better = "Ahead of" if few else "Better than"
        return f"{better} {which}, by {gain}{paired}.{few}{base}"
    few = _too_few(summary, verdict, found_row)
    handed = ""
    if best.trial != found_row.trial:
        handed = (
            f" best.tailor is a simpler plan within one standard error, trial {best.trial}"
            f" ({best.origin})."
        )
    if verdict.itself:
        return f"The search found nothing better than a starting plan, '{name}'.{handed}{base}"
    if verdict.worse:
        return f"Worse than '{name}', by {gain}{paired}.{few}{handed}{base}"
    return f"A tie with '{name}': {_way(against)} by {gain}{paired}.{few}{handed}{base}"


_FEWEST_SAMPLES = 8
"""The fewest samples whose differences have a standard error that says much."""


def _too_few(summary: SearchSummary, verdict: VerdictRecord, found_row: SummaryRow) -> str:
    """Return a sentence if there are too few samples for a comparison, else nothing."""
    counts = [summary.held[n] for n in verdict.numbers] if verdict.held else [found_row.samples]
    least = min(counts)
    if least >= _FEWEST_SAMPLES:
        return ""
    samples = f"{least} sample{'s' * (least != 1)}"
    return f" {samples} are too few to tell; use {_FEWEST_SAMPLES} or more."


def _beside_the_base(verdict: VerdictRecord) -> str:
    """Return the comparison of the found plan with a base that is no larger."""
    base = verdict.base
    if base is None or not base.no_larger:
        return ""
    better = "Better" if base.better else "No better"
    gain = f"{_way(base)} by {_gain(base, verdict.unit)}"
    return f" {better} than the base, uncut, which is no larger: {gain}."


def _way(of: GainRecord) -> str:
    return "worse" if of.gain < 0 else "better"


def _gain(of: GainRecord, unit: str) -> str:
    """Return `0.031 ± 0.006 nats`, better or worse."""
    scale, name = (1.0, unit) if unit else (100.0, "% of the base's scores")
    error = math.inf if of.stderr is None else of.stderr
    return f"{with_error(scale * abs(of.gain), scale * error)} {name}"


def _required(summary: SearchSummary) -> Iterator[str]:
    """Yield the requirements, and the values of the best or the nearest plan."""
    required = summary.required
    if required is None:
        return
    evaluated, met, nearest = required.evaluated, required.met, required.nearest
    near = "" if nearest is None else f"; the nearest is {nearest}"
    if not required.whole:
        yield "the requirements are not evaluated on all plans yet"
    if met:
        yield f"{met} of {evaluated} evaluated plans meet the requirements"
    elif evaluated or required.whole:
        yield f"none of {evaluated} evaluated plans meets the requirements{near}"
    for row in required.rows:
        held = "" if row.held is None else f", held out {shown_number(row.held)}"
        held_bound = row.held_bound
        held += (
            f" ({shown_number(held_bound)})" if held and held_bound not in (None, row.bound) else ""
        )
        bound = shown_number(row.bound)
        yield f"{row.require} ({bound}): it has {shown_number(row.value)}{held}"


def _final(summary: SearchSummary) -> Iterator[str]:
    """Yield the scores of the best trials before and after they were repaired in the end."""
    for row in summary.final:
        name = f"trial {row.trial} ({row.origin}), {_stage_of(row)}"
        if row.values is None:
            why, _, _ = (row.failure or "").partition("\n")
            yield f"{name}: failed: {escaped_control(why)}"
            continue
        before = row.before or (None,) * len(row.values)
        pairs = zip(before, row.values, strict=True)
        yield f"{name}: {'; '.join(f'{shown_number(b)} → {shown_number(v)}' for b, v in pairs)}"


def _random(summary: SearchSummary) -> Iterator[str]:
    drawn, found_row, deciding = summary.random, summary.found, summary.deciding
    if drawn.expected is not None and found_row is not None:
        expected = shown_number(drawn.expected)
        if len(deciding) == 1:
            reach, got = f"reach {expected}", _at(found_row.values, deciding[0])
        else:
            reach, got = f"lose {expected} {summary.loss_unit} on the mean", found_row.lost
        yield (
            f"Random search at the same cost would be expected to {reach}"
            f" (found: {shown_number(got)}): "
            f"an estimate from {_count(drawn.trials, 'random plan')}."
        )


def _spent(summary: SearchSummary) -> Iterator[str]:
    """Yield the cost beside the trials, in evaluations on all samples."""
    spent = summary.measured
    parts = []
    if spent.evaluations:
        clock = f" ({spent.seconds:.0f} s)" if spent.seconds >= 1 else ""
        total = f"{summary.cost + spent.evaluations:.4g} with the trials"
        parts.append(f"measuring layers {spent.evaluations:.3g}{clock}, {total}")
    if spent.base:
        parts.append(f"scoring the base {spent.base:.3g} more")
    if parts:
        yield f"Cost in evaluations on all samples: {'; '.join(parts)}."


def _commands(summary: SearchSummary) -> Iterator[str]:
    if summary.best is not None:
        for command in summary.commands:
            yield f"    {command}"


HEALED_IN_VAIN: Final = "healing changed nothing"
"""The words for a plan whose layers healing left as they were."""


def stage_words(
    stage: Stage, before: Sequence[float | None] | None, scores: Sequence[float | None] | None
) -> str:
    """Return `bridged`, `healed`, or `healing changed nothing`; nothing for a bare plan.

    `before` are the plan's scores before it was healed. Healing that leaves every layer as it was
    leaves the scores too.
    """
    if stage == "healed" and before is not None and scores is not None:
        return HEALED_IN_VAIN if list(before) == list(scores) else stage
    return "" if stage == "bare" else stage
