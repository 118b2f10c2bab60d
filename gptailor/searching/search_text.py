"""A search's result in words: its summary as a page and for a terminal."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from gptailor.plan.stage import Stage
from gptailor.reporting.quantities import (
    bytes_in_words,
    clock,
    short_count,
    shown_number,
    with_error,
)
from gptailor.reporting.table import table_lines
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.origin import ModelAlone, TrialOrigin, UniformMerge
from gptailor.searching.run.records import (
    GainRecord,
    HeldOutFailure,
    SearchSummary,
    SizeRow,
    SummaryRow,
    VerdictRecord,
    WithScores,
)

_Table: TypeAlias = tuple[Sequence[str], Sequence[str], Sequence[Sequence[str]]]
"""A table of the summary: the lines above it, its head, and its rows."""


def markdown(summary: SearchSummary) -> str:
    """Return the summary as a page."""
    lines = [f"# {summary.plan}", "", headline(summary), ""]
    for above, head, rows in _tables(summary):
        first, *body = (f"| {' | '.join(row)} |" for row in (head, *rows))
        lines += [
            *(f"- {line}" for line in above),
            "",
            first,
            "|---|" + "--:|" * (len(head) - 1),
            *body,
            "",
        ]
    for part in _notes(summary):
        lines += [*part, ""]
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(summary: SearchSummary, width: int, encoding: str | None = None) -> Iterator[str]:
    """Yield the summary's lines for a terminal with `width` columns; commands stay whole."""
    yield from textwrap.wrap(headline(summary), width)
    for above, head, rows in _tables(summary):
        yield ""
        for line in above:
            yield from textwrap.wrap(line, width)
        yield from table_lines(head, rows, width, encoding, in_a_line=True)
    for part in _notes(summary):
        yield ""
        for line in part:
            yield from [line] if line.startswith(" ") else textwrap.wrap(line, width)


# --------------------------------------------------------------------------------- the first lines


def headline(summary: SearchSummary) -> str:
    """Return how long the search took, what it tried and found, and how sure that is."""
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new any more",
        "interrupted": "; interrupted, and the same command goes on",
    }
    failed = f", {summary.failed} failed" if summary.failed else ""
    took = clock(summary.seconds + summary.measured.seconds)
    plans = _count(summary.trials - summary.hits, "plan")
    tried = f"{plans} tried in {took}{failed}{ends[summary.ended]}."
    verdict, found, best = summary.verdict, summary.found, summary.best
    if verdict is None or found is None or best is None:
        unmet = summary.required is not None and not summary.required.met
        return f"{tried} {'There is no best plan.' if unmet else 'No plan has a score.'}"
    simpler = (
        f" best.tailor is a simpler plan within one standard error, {_named(best)}."
        if best.trial != found.trial
        else ""
    )
    start = _beside_start(summary, verdict, found)
    base = _beside_smaller_base(verdict, summary.loss_unit)
    return f"{tried} {_found(summary, verdict, found)} {start}{simpler}{base}"


def _count(count: float, noun: str) -> str:
    """Return `1 plan`, `2 plans`."""
    return f"{count:g} {noun}{'s' * (count != 1)}"


def _named(row: SummaryRow) -> str:
    """Return `plan 7 (L12..L18 dropped, math 0.6, healed)`."""
    stage = stage_words(row.stage, row.before, row.values)
    words = ", ".join(filter(None, (row.cut, row.recipe, stage)))
    return f"plan {row.trial} ({words or row.origin})"


def _found(summary: SearchSummary, verdict: VerdictRecord, found: SummaryRow) -> str:
    """Return the found plan and its loss, on held-out samples if the verdict is on them."""
    lost, error = found.lost, found.lost_stderr
    if verdict.held:
        lost, error = found.held_lost, found.held_lost_stderr
    several, numbers = sum(not aim.size for aim in summary.objectives), summary.deciding
    mean = f" on the mean of {len(numbers)} objectives" if len(numbers) > 1 else ""
    if len(numbers) < several:
        mean = f" by {summary.objectives[numbers[0]].name} alone"
    words = "" if lost is None else f": {loss_words(lost, error, summary.loss_unit)}{mean}"
    held = _count(_samples(summary, verdict, found), "held-out sample")
    own = _count(found.samples, "sample") + ", none held out" * (not any(summary.held))
    return f"Found {_named(found)}{words}, on {held if verdict.held else own}."


def _samples(summary: SearchSummary, verdict: VerdictRecord, found: SummaryRow) -> int:
    """Return the fewest samples of an objective that the verdict is on."""
    held = [summary.held[number] for number in summary.deciding]
    return min(held) if verdict.held else found.samples


_FEWEST_SAMPLES = 8
"""The fewest samples whose differences have a standard error that says much."""


def _beside_start(summary: SearchSummary, verdict: VerdictRecord, found: SummaryRow) -> str:
    """Compare the found plan with the best plan that needs no search."""
    against = verdict.against
    if against is None:
        sizes = any(aim.size for aim in summary.objectives)
        other = "repaired alike and no larger" if sizes else "repaired alike"
        return f"No starting plan {other} meets all requirements, so it is compared with none."
    plan = f"plan {against.trial} ({against.origin})"
    gain = amount_words(against.gain, against.stderr, summary.loss_unit)
    if against.trial == found.trial:
        return f"The search found nothing better than a starting plan, {plan}."
    least = _samples(summary, verdict, found)
    few = least < _FEWEST_SAMPLES
    if verdict.better:
        many = f"the best of {verdict.starts} starting plans, " if verdict.starts > 1 else ""
        words = f"{'Ahead of' if few else 'Better than'} {many}{plan}, by {gain}."
    elif verdict.worse:
        words = f"Worse than {plan}, by {gain}."
    else:
        words = f"A tie with {plan}: {_way(against)} by {gain}."
    too_few = f" {_count(least, 'sample')} are too few to tell; use {_FEWEST_SAMPLES} or more."
    return words + too_few * few


def _beside_smaller_base(verdict: VerdictRecord, unit: str) -> str:
    """Return the comparison of the found plan with a base that is no larger."""
    base = verdict.base
    if base is None or not base.no_larger:
        return ""
    better = "Better" if base.better else "No better"
    gain = f"{_way(base)} by {amount_words(base.gain, base.stderr, unit)}"
    return f" {better} than the base, uncut, which is no larger: {gain}."


def _way(of: GainRecord) -> str:
    return "worse" if of.gain < 0 else "better"


# -------------------------------------------------------------------------------------- the tables


def _tables(summary: SearchSummary) -> Iterator[_Table]:
    """Yield the table of scores, and the table of sizes if there are several.

    Several objectives have only the scores on held-out samples, if there are any.
    """
    tabled = [  # sizes from headers are in the table of sizes
        i
        for i, aim in enumerate(summary.objectives)
        if aim.unit not in ("parameters", "bytes", "bytes a token")
    ]
    above = [_legend(summary, i) for i in tabled]
    marks, held = ["score"], any(summary.held)
    shown = [False, True] if held else [False]
    if len(tabled) > 1:
        marks, shown = [f"({n})" for n in range(1, len(tabled) + 1)], [held]
        above = [f"{mark} {line}" for mark, line in zip(marks, above, strict=True)]
    if (recipe := summary.recipe) is not None and recipe.lost is not None:
        uncut = loss_words(recipe.lost, recipe.lost_stderr, summary.loss_unit)
        above.append(f"recipe of cuts: {recipe.origin} (plan {recipe.trial}), uncut {uncut}")
    lost = f"{short_unit(summary.loss_unit)} lost"
    columns = [(i, unseen) for unseen in shown for i in tabled]
    heads = [f"{mark} held out".removeprefix("score ") if unseen else mark
             for unseen in shown for mark in marks]  # fmt: skip
    rows = [
        [name, *(_score_cell(row, *column) for column in columns), _loss_cell(loss)]
        for name, row, loss in _rows(summary)
    ]
    yield above, ["", *heads, lost], rows
    if len(summary.sizes) > 1:
        head = ["", "layers", "parameters", "weights", "KV/token", lost]
        title = "quality over size: gptailor pick writes one of these"
        size_rows = [_size_cells(summary, row) for row in summary.sizes]
        yield [title], [*head, "held out"] if held else head, size_rows


def _legend(summary: SearchSummary, i: int) -> str:
    """Return `nll("text.txt"): less is better; 64 samples, 30 held out`."""
    aim = summary.objectives[i]
    better = "less is better" if aim.direction == "minimize" else "more is better"
    samples = _count(summary.samples, "sample")
    return f"{aim.name}: {better}; {samples}, {summary.held[i] or 'none'} held out"


def _rows(summary: SearchSummary) -> Iterator[tuple[str, WithScores, float | None]]:
    """Yield names, rows and losses: the base, the plan found, starting plans, finalists, random.

    Starting plans that were repaired less than the found plan aren't compared with it.
    """
    yield "base", summary.base, None
    found = summary.found
    stage = None if found is None else found.stage
    alike = [row for row in summary.starts if stage in (None, row.stage)]
    given = [("found", found), ("simpler", summary.best), *(("start", row) for row in alike)]
    given += [("finalist", row) for row in summary.final]
    named: set[int] = set()
    for role, row in [*given, ("random", summary.random.best)]:
        if row is not None and row.trial not in named:
            named.add(row.trial)
            lost = row.held_lost if any(summary.held) else row.lost
            yield _row_name(summary, role, row), row, lost


def _score_cell(row: WithScores, i: int, unseen: bool) -> str:
    """Return a score on the search's own or on held-out samples, with the score before repair."""
    if unseen:
        held = row.held_scores
        failed = "failed" if isinstance(row.held, HeldOutFailure) else ""
        return failed if held is None else shown_number(held.values[i], held.stderrs[i])
    error = None if row.stderrs is None else row.stderrs[i]
    score = "failed" if row.values is None else shown_number(row.values[i], error)
    before = row.before if isinstance(row, SummaryRow) else None
    return score if before is None else f"{shown_number(before[i])} → {score}"


def _row_name(summary: SearchSummary, role: str, row: SummaryRow) -> str:
    """Return `start 7: L12..L18 dropped, math 0.6`; the best recipe stands above the table."""
    best = None if summary.recipe is None else summary.recipe.recipe
    recipe = "" if row.recipe == best else row.recipe
    stage = stage_words(row.stage, row.before, row.values)
    usual = summary.found is not None and stage == summary.found.stage
    words = [row.cut, recipe, "" if usual else stage]
    plan = ", ".join(filter(None, words)) or row.origin
    return f"{role} {row.trial}: {plan}"


def _size_cells(summary: SearchSummary, row: SizeRow) -> list[str]:
    """Return the best plan of a size, and its losses."""
    losses = [row.lost, row.held_lost] if any(summary.held) else [row.lost]
    return [
        f"{row.trial}: {row.cut or row.origin}",
        str(row.layers),
        short_count(row.parameters),
        bytes_in_words(row.bytes),
        bytes_in_words(row.kv_cache),
        *map(_loss_cell, losses),
    ]


def _loss_cell(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3g}" if abs(loss) < 1 else f"{loss:.4g}"


# --------------------------------------------------------------------------------------- the notes


def _notes(summary: SearchSummary) -> Iterator[list[str]]:
    """Yield paragraphs; the last one has numbers for specialists."""
    parts = (_required, _failed, _stages, _left_out, _at_bounds, _random, _commands, _cost)
    yield from filter(None, ([*part(summary)] for part in parts))


def _required(summary: SearchSummary) -> Iterator[str]:
    """Yield the requirements, and the values of the best or the nearest plan."""
    required = summary.required
    if required is None:
        return
    if not required.whole:
        yield "- the requirements are not evaluated on all plans yet"
    if required.evaluated or required.whole:
        near = "" if required.nearest is None else f"; the nearest is {required.nearest}"
        plans = f"{required.met} of {required.evaluated} evaluated plans meet the requirements"
        yield f"- {plans}{near}"
    for row in required.rows:
        held = "" if row.held is None else f", held out {shown_number(row.held)}"
        if held and row.held_bound not in (None, row.bound):
            held += f" ({shown_number(row.held_bound)})"
        yield f"- {row.require} ({shown_number(row.bound)}): it has {shown_number(row.value)}{held}"


def _failed(summary: SearchSummary) -> Iterator[str]:
    """Yield the reasons why plans were not repaired in the end."""
    for row in summary.final:
        if row.values is None:
            why, _, _ = (row.failure or "").partition("\n")
            yield f"- {_named(row)}: failed: {escaped_control(why)}"


def _stages(summary: SearchSummary) -> Iterator[str]:
    """Describe what was compared before plans were repaired, and what repair changed."""
    repaired = "healed" if summary.heals else "bridged"
    if summary.heals or summary.bridge is not None:
        compared = "cuts"
        if summary.recipe is not None:
            recipes = _count(summary.recipes, "recipe")
            compared = f"{recipes} with nothing dropped, then cuts of the best recipe"
        yield f"The search compared {compared}. The best plans were {repaired} at the end."
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
    shown = numbers[:_MOST_AT_BOUNDS]
    texts = [f"{number.name} = {number.value:g}, the {number.bound} end" for number in shown]
    more = len(numbers) - len(texts)
    texts += [f"and {more} more"] if more else []
    yield (
        f"Numbers of the best plan at a bound of their interval: {'; '.join(texts)}."
        " A wider interval may contain a better plan."
    )


def _random(summary: SearchSummary) -> Iterator[str]:
    drawn, found = summary.random, summary.found
    if drawn.expected is not None and found is not None:
        expected = shown_number(drawn.expected)
        yield (
            f"Random search at the same cost would be expected to lose {expected}"
            f" {summary.loss_unit} (found: {shown_number(found.lost)}): "
            f"an estimate from {_count(drawn.trials, 'random plan')}."
        )


def _commands(summary: SearchSummary) -> Iterator[str]:
    if summary.best is not None:
        yield from (f"    {command}" for command in summary.commands)


def _cost(summary: SearchSummary) -> Iterator[str]:
    """Yield the cost in evaluations on all samples, and what else concerns trials."""
    spent, late = summary.measured, summary.late
    times = "once" if late == 1 else f"{late} times"
    parts = {
        f"{summary.cost:.3g} for {_count(summary.trials, 'trial')}": summary.trials,
        f"{spent.evaluations:.3g} for measuring layers": spent.evaluations,
        f"{spent.base:.3g} for the base": spent.base,
        f"{_count(summary.hits, 'repeated plan')}": summary.hits,
        f"{summary.stopped} given up early (spared: {summary.spared:g})": summary.stopped,
        f"a slow worker was not waited for {times}: the same seed may give other trials": late,
        f"with {', '.join(summary.packages)}": len(summary.packages),
    }
    words = "; ".join(part for part, count in parts.items() if count)
    yield f"Cost in evaluations on all samples: {words}."


# ------------------------------------------------------------------------------- words of one plan


def short_recipe(origin: TrialOrigin) -> str:
    """Return the recipe of a starting plan: `math`, `math+code 0.6`; "" for other plans."""
    of = getattr(origin, "of", None)
    if isinstance(of, ModelAlone):
        return of.model
    if not isinstance(of, UniformMerge):
        return ""
    models = "merge" if of.every else "+".join(of.models)
    return models if of.coefficient is None else f"{models} {of.coefficient:g}"


def loss_words(lost: float, error: float | None, unit: str) -> str:
    """Return `0.041 ± 0.006 nats lost`; an error of None is unknown."""
    return f"{amount_words(lost, error, unit)} {'won' if lost < 0 else 'lost'}"


def amount_words(number: float, error: float | None, unit: str) -> str:
    """Return `0.041 ± 0.006 nats` without a sign; an error of None is unknown."""
    return f"{with_error(abs(number), math.inf if error is None else error)} {unit}"


def short_unit(unit: str) -> str:
    """Return a unit of losses without its reference: `%` of `% of the base's score`."""
    return unit.partition(" of ")[0]


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
