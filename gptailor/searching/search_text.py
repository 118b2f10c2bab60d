"""A search's result in words: its summary as a page and for a terminal."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from gptailor.reporting.measure import SURE, Estimate, finite_or_none
from gptailor.reporting.quantities import (
    bytes_in_words,
    clock,
    short_count,
    shown_number,
    with_error,
)
from gptailor.reporting.table import table_lines
from gptailor.reporting.terminal_encoding import escaped_control, wrapped
from gptailor.searching.run.origin import ModelAlone, TrialOrigin, UniformMerge, origin_words
from gptailor.searching.run.records import CurvePoint, front_file
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.study import HeldOutFailure
from gptailor.searching.run.trials import FINAL, RECIPES, Ledger, Trial
from gptailor.searching.run_reading import RunReading
from gptailor.searching.space.decode import plan_cut_words
from gptailor.searching.summary import (
    Verdict,
    best_recipe,
    drawn_plans,
    expected,
    held_key,
    numbers_at_bounds,
    repair_worth,
)

_Table: TypeAlias = tuple[Sequence[str], Sequence[str], Sequence[Sequence[str]]]
"""A table of the summary: the lines above it, its head, and its rows."""


def markdown(
    run: RunReading, commands: Sequence[str] = (), curve: Sequence[CurvePoint] | None = None
) -> str:
    """Return the summary of a search that has ended as a page; the `curve` may not be noted yet."""
    lines = [f"# {run.record.plan}", "", headline(run), ""]
    for above, head, rows in _tables(run, run.curve if curve is None else curve):
        first, *body = (f"| {' | '.join(row)} |" for row in (head, *rows))
        lines += [
            *(f"- {line}" for line in above),
            "",
            first,
            "|---|" + "--:|" * (len(head) - 1),
            *body,
            "",
        ]
    for part in _notes(run, commands):
        lines += [*part, ""]
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(
    run: RunReading, width: int, encoding: str | None = None, commands: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the summary's lines for a terminal with `width` columns; commands stay whole."""
    yield from wrapped(headline(run), width)
    for above, head, rows in _tables(run, run.curve):
        yield ""
        for line in above:
            yield from wrapped(line, width, later="    ")
        labels = [row[0].partition(": ")[0] for row in rows]
        yield from table_lines(head, rows, width, encoding, labels)
    for part in _notes(run, commands):
        yield ""
        for line in part:
            yield from [line] if line.startswith(" ") else wrapped(line, width)


# --------------------------------------------------------------------------------- the first lines


def headline(run: RunReading) -> str:
    """Return the search's trials and time, the found plan and the certainty."""
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new",
        "interrupted": "; interrupted, and the same command continues",
    }
    trials, verdict, required = run.ledger.trials, run.verdict, run.end.required
    failures = sum(trial.values is None for trial in trials)
    failed = f", {failures} failed" if failures else ""
    seconds = math.fsum(trial.seconds for trial in trials)
    took = clock(round(seconds, 1) + run.notes.measured.seconds)
    tried = f"{_count(len(trials), 'trial')} in {took}{failed}{ends[run.end.ended]}."
    if verdict is None:
        unmet = required is not None and not required.met
        return f"{tried} {'There is no best plan.' if unmet else 'No plan has a score.'}"
    simpler = (
        f" best.tailor is a simpler plan within one standard error, {_named(run, verdict.best)}."
        if verdict.best is not verdict.found
        else ""
    )
    start, base = _beside_start(run, verdict), _beside_smaller_base(run, verdict)
    return f"{tried} {_found(run, verdict)} {start}{simpler}{base}"


def _count(count: float, noun: str) -> str:
    """Return `1 plan`, `2 plans`."""
    return f"{count:g} {noun}{'s' * (count != 1)}"


def _named(run: RunReading, trial: Trial) -> str:
    """Return `trial 7 (L12..L18 dropped, math 0.6, healed)`."""
    origin, stage = trial.request.origin, stage_words(trial, run.ledger)
    words = ", ".join(filter(None, (_cut(run, trial), short_recipe(origin), stage)))
    return f"trial {trial.number} ({words or origin_words(origin)})"


def _cut(run: RunReading, trial: Trial) -> str:
    return plan_cut_words(run.space, trial.request.genome, trial.request.stage)


def _found(run: RunReading, verdict: Verdict) -> str:
    """Return the found plan and its loss, on held-out samples if the verdict is on them."""
    ledger, found = run.ledger, verdict.found
    lost = run.held_loss(found) if verdict.held else ledger.loss(found)
    numbers = ledger.deciding
    mean = f" on the mean of {len(numbers)} objectives" if len(numbers) > 1 else ""
    if len(numbers) < len(ledger.rated):
        mean = f" by {ledger.aims[numbers[0]].name} alone"
    words = "" if lost is None else f", {loss_words(lost, ledger.loss_unit)}{mean}"
    held = _count(_samples(run, verdict), "held-out sample")
    own = _count(found.request.samples, "sample") + ", none held out" * (not any(run.end.held))
    return f"Found plan: {_named(run, found)}{words}, on {held if verdict.held else own}."


def _samples(run: RunReading, verdict: Verdict) -> int:
    """Return the fewest samples of an objective that the verdict is on."""
    held = [run.end.held[number] for number in run.ledger.deciding]
    return min(held) if verdict.held else verdict.found.request.samples


_FEWEST_SAMPLES = 8
"""The fewest samples for a useful standard error of differences."""


def _beside_start(run: RunReading, verdict: Verdict) -> str:
    """Compare the found plan with the best plan that needs no search."""
    rival, gain = verdict.rival, verdict.gain
    if rival is None or gain is None:
        meets = " and meets all requirements" * (run.end.required is not None)
        return (
            f"No starting plan was repaired in the same way{meets}, so it is compared with no plan."
        )
    plan = f"trial {rival.number} ({origin_words(rival.request.origin)})"
    if rival is verdict.found:
        return f"The search found nothing better than a starting plan, {plan}."
    many = f"the best of {verdict.starts} starting plans, " if verdict.starts > 1 else ""
    other = f"{many * gain.sure}{plan}{', which is larger' * verdict.larger}"
    least = _samples(run, verdict)
    if least >= _FEWEST_SAMPLES or not (gain.sure or gain.reversed.sure):
        return _compared(run, verdict, gain, other)
    too_few = f"{_count(least, 'sample')} are too few to tell; use {_FEWEST_SAMPLES} or more."
    return f"{_compared(run, verdict, gain, other, 'Ahead of')} {too_few}"


def _beside_smaller_base(run: RunReading, verdict: Verdict) -> str:
    """Return the comparison of the found plan with a base that isn't larger."""
    if verdict.base is None or not verdict.no_larger:
        return ""
    return " " + _compared(run, verdict, verdict.base, "the base, uncut, which isn't larger")


def _compared(
    run: RunReading, verdict: Verdict, gain: Estimate, other: str, better: str = "Better than"
) -> str:
    """Return the comparison of the found plan with another plan."""
    if not (gain.sure or gain.reversed.sure):
        return f"A tie with {other}: {_open(run, verdict, gain)}."
    by = _amount_words(gain, run.ledger.loss_unit)
    return f"{better if gain.sure else 'Worse than'} {other}, by {by}."


_MOST_SAMPLES = 100_000
"""The most samples that anybody would take to decide between two plans."""


def _open(run: RunReading, verdict: Verdict, gain: Estimate) -> str:
    """Return a gain that isn't sure, its samples, and about how many samples would decide it.

    The standard error falls with the root of their number, and the gain is taken to stay.
    """
    least = _samples(run, verdict)
    words = (
        f"{_way(gain)} by {_amount_words(gain, run.ledger.loss_unit)}"
        f" on {_count(least, 'held-out sample' if verdict.held else 'sample')}"
    )
    needed = least * (SURE * gain.stderr / gain.value) ** 2 if gain.value else math.inf
    if needed > _MOST_SAMPLES and least >= _FEWEST_SAMPLES:
        return words
    known = needed if needed <= _MOST_SAMPLES else 0
    count = math.ceil(round(max(known, least + 1, _FEWEST_SAMPLES), 6))
    return f"{words}; about {float(f'{count:.3g}'):,.0f} a text would decide it"


def _way(gain: Estimate) -> str:
    return "worse" if gain.value < 0 else "better"


# -------------------------------------------------------------------------------------- the tables


def _tables(run: RunReading, curve: Sequence[CurvePoint]) -> Iterator[_Table]:
    """Yield the table of scores, and the table of sizes if there are several.

    Several objectives have only the scores on held-out samples, if there are any.
    """
    ledger = run.ledger
    tabled = [  # sizes from headers are in the table of sizes
        i
        for i, aim in enumerate(ledger.aims)
        if aim.unit not in ("parameters", "bytes", "bytes a token")
    ]
    above = [_legend(run, i) for i in tabled]
    marks, held = ["score"], any(run.end.held)
    shown = [False, True] if held else [False]
    if len(tabled) > 1:
        marks, shown = [f"({n})" for n in range(1, len(tabled) + 1)], [held]
        above = [f"{mark} {line}" for mark, line in zip(marks, above, strict=True)]
    lost = f"{short_unit(ledger.loss_unit)} lost"
    columns = [(i, unseen) for unseen in shown for i in tabled]
    heads = [f"{mark} held out".removeprefix("score ") if unseen else mark
             for unseen in shown for mark in marks]  # fmt: skip
    rows = [
        [name, *(_score_cell(run, trial, *column) for column in columns), _loss_cell(loss)]
        for name, trial, loss in _rows(run)
    ]
    yield above, ["", *heads, lost], rows
    if len(curve) > 1:
        head = ["", "layers", "parameters", "weights", "KV/token", lost]
        title = "quality over size: gptailor pick writes one of these"
        size_rows = [_size_cells(run, point) for point in curve]
        yield [title], [*head, "held out"] if held else head, size_rows


def _legend(run: RunReading, i: int) -> str:
    """Return `nll("text.txt"): less is better; 64 samples, 30 held out`.

    A unit that is used because vocabularies differ is named first.
    """
    aim, held = run.ledger.aims[i], run.end.held[i]
    better = "less is better" if aim.direction == "minimize" else "more is better"
    why = f"in {aim.unit}, because the vocabularies differ; " * aim.unit.endswith(" a byte")
    samples = f"{_count(run.ledger.full, 'sample')}, {held or 'none'} held out"
    return f"{aim.name}: {why}{better}; {samples}"


def _rows(run: RunReading) -> Iterator[tuple[str, Trial | None, Estimate | None]]:
    """Yield names, trials and losses: base, plan found, starting plans, finalists, random plan.

    The best recipe, which all cuts are of, follows the base with nothing dropped. Starting plans
    that were repaired less than the found plan aren't compared with it.
    """
    yield "base", None, None
    ledger, verdict = run.ledger, run.verdict
    found, best = (None, None) if verdict is None else (verdict.found, verdict.best)
    stage = None if found is None else found.request.stage
    alike = [trial for trial in run.starts if stage in (None, trial.request.stage)]
    given = [("uncut", best_recipe(ledger)), ("found", found), ("simpler", best)]
    given += [("start", trial) for trial in alike]
    given += [("finalist", trial) for trial in ledger.of(FINAL)]
    named: set[Trial] = set()
    for role, trial in [*given, ("random", ledger.best(drawn_plans(ledger)))]:
        if trial is not None and trial not in named:
            named.add(trial)
            lost = run.held_loss(trial) if any(run.end.held) else ledger.loss(trial)
            yield _row_name(run, role, trial), trial, lost


def _score_cell(run: RunReading, trial: Trial | None, i: int, unseen: bool) -> str:
    """Return a score on the search's own or on held-out samples, with the score before repair."""
    if unseen:
        held = run.notes.held_out.get(held_key(trial))
        failed = "failed" if isinstance(held, HeldOutFailure) else ""
        return _shown(held, i) if isinstance(held, Scores) else failed
    if trial is None:
        base = run.ledger.references.get(run.ledger.full)
        return "failed" if base is None else shown_number(base[i])
    scores, before = trial.scores, run.ledger.before(trial)
    score = "failed" if scores is None else _shown(scores, i)
    if before is None or before.values is None:
        return score
    return f"{shown_number(before.values[i])} → {score}"


def _shown(scores: Scores, i: int) -> str:
    return shown_number(scores.values[i], finite_or_none(scores.stderrs[i]))


def _row_name(run: RunReading, role: str, trial: Trial) -> str:
    """Return `start 7: L12..L18 dropped, math 0.6`; the best recipe has a row of its own."""
    origin, best = trial.request.origin, best_recipe(run.ledger)
    recipe, stage = short_recipe(origin), stage_words(trial, run.ledger)
    if role == "uncut":
        return f"{role} {trial.number}: {recipe or origin_words(origin)}"
    usual_recipe = best is not None and recipe == short_recipe(best.request.origin)
    usual = run.verdict is not None and stage == run.verdict.found.request.stage
    words = [_cut(run, trial), "" if usual_recipe else recipe, "" if usual else stage]
    plan = ", ".join(filter(None, words)) or origin_words(origin)
    return f"{role} {trial.number}: {plan}"


def _size_cells(run: RunReading, point: CurvePoint) -> list[str]:
    """Return the best plan of a size, and its losses."""
    trial, size = run.ledger.trials[point.trial], point.size
    losses = [run.ledger.loss(trial), *([run.held_loss(trial)] if any(run.end.held) else [])]
    return [
        f"{trial.number}: {_cut(run, trial) or origin_words(trial.request.origin)}",
        str(size.layers),
        short_count(size.parameters),
        bytes_in_words(size.bytes),
        bytes_in_words(size.kv_cache),
        *map(_loss_cell, losses),
    ]


def _loss_cell(loss: Estimate | None) -> str:
    if loss is None:
        return ""
    return f"{loss.value:.3g}" if abs(loss.value) < 1 else f"{loss.value:.4g}"


# --------------------------------------------------------------------------------------- the notes


def _notes(run: RunReading, commands: Sequence[str]) -> Iterator[list[str]]:
    """Yield paragraphs; the last one has numbers for specialists."""
    parts = (_required, _failed, _stages, _left_out, _at_bounds, _random)
    yield from filter(None, ([*part(run)] for part in parts))
    if commands:
        samples = _count(run.ledger.full, "sample")
        unseen = f"The first command scores it on the search's {samples}, not on held-out ones."
        yield [unseen] * any(run.end.held) + [f"    {command}" for command in commands]
    yield [_cost(run)]


def _required(run: RunReading) -> Iterator[str]:
    """Yield the requirements, and the values of the best or the nearest plan."""
    required, trials = run.end.required, run.ledger.trials
    if required is None:
        return
    if not required.whole:
        yield "- the requirements are not evaluated on all plans yet"
    nearest = None if required.nearest is None else trials[required.nearest]
    if required.evaluated or required.whole:
        near = "" if nearest is None else f"; the nearest is {front_file(nearest.number)}"
        met, evaluated = len(required.met), required.evaluated
        yield f"- {met} of {evaluated} evaluated plans meet the requirements{near}"
    best = nearest if run.verdict is None else run.verdict.best
    values = {} if best is None else run.notes.conditions.get(held_key(best), {})
    known = values.keys() >= {row.measure for row in required.rows}
    for row in required.rows if known else ():
        value, unseen = values[row.measure]
        held = "" if unseen is None else f", held out {shown_number(unseen)}"
        if held and row.held_bound not in (None, row.bound):
            held += f" ({shown_number(row.held_bound)})"
        yield f"- {row.require} ({shown_number(row.bound)}): it has {shown_number(value)}{held}"


def _failed(run: RunReading) -> Iterator[str]:
    """Yield the reasons why plans were not repaired in the end."""
    for trial in run.ledger.of(FINAL):
        if trial.values is None:
            why, _, _ = str(trial.failure or "").partition("\n")
            yield f"- {_named(run, trial)}: failed: {escaped_control(why)}"


def _stages(run: RunReading) -> Iterator[str]:
    """Describe the comparison before plans were repaired, and the changes by repair."""
    ledger, record = run.ledger, run.record
    repaired = "healed" if record.heals else "bridged"
    if record.heals or record.bridge is not None:
        compared = "cuts"
        if best_recipe(ledger) is not None:
            recipes = _count(len({trial.plan for trial in ledger.of(RECIPES)}), "plan")
            compared = f"{recipes} with nothing dropped, then cuts of the best one"
        end = f"The best plans were {repaired} at the end."
        if record.bridge == "each" and not record.heals:
            end = "All plans were bridged."
        if run.verdict is not None and run.unrepaired(run.verdict.best):
            end = (
                f"It was interrupted before the best plans were {repaired}: the scores are without"
                " that. best.tailor has the repairs of the space; 'gptailor compile' makes them."
            )
        yield f"The search compared {compared}. {end}"
    if (worth := repair_worth(ledger)) is not None:
        yield (
            f"A loss of 1 between plans before they were {repaired} was {worth.slope:.2g} after it"
            f" ({worth.plans} plans, rank correlation {worth.correlation:.2f})."
        )


def _left_out(run: RunReading) -> Iterator[str]:
    if names := run.end.left_out:
        plans = ", ".join(names)
        yield f"Starting plans beyond the budget: {plans}. A larger `--trials` tries more."
    if beyond := run.end.beyond:
        yield f"Starting plans that a `require` line for a size excludes: {', '.join(beyond)}."


_MOST_AT_BOUNDS = 8
"""The most numbers at their bounds that the summary lists."""


def _at_bounds(run: RunReading) -> Iterator[str]:
    """Name the best plan's numbers that are at a bound of their interval."""
    verdict = run.verdict
    numbers = [] if verdict is None else [*numbers_at_bounds(run.space, verdict.best)]
    if not numbers:
        return
    shown = numbers[:_MOST_AT_BOUNDS]
    texts = [f"{name} = {value:g}, the {bound} end" for name, value, bound in shown]
    more = len(numbers) - len(texts)
    texts += [f"and {more} more"] if more else []
    yield (
        f"Numbers of the best plan at a bound of their interval: {'; '.join(texts)}."
        " A wider interval may contain a better plan."
    )


def _random(run: RunReading) -> Iterator[str]:
    ledger, drawn = run.ledger, drawn_plans(run.ledger)
    least, found = expected(ledger, drawn), None if run.verdict is None else run.verdict.found
    if least is not None and found is not None:
        lost = ledger.loss(found)
        yield (
            f"Random search at the same cost would be expected to lose {shown_number(least)}"
            f" {ledger.loss_unit} (found: {shown_number(lost and lost.value)}): "
            f"an estimate from {_count(len(drawn), 'random plan')}."
        )


def _cost(run: RunReading) -> str:
    """Return the cost in evaluations on all samples, and other facts about trials."""
    ledger, notes, trials = run.ledger, run.notes, len(run.ledger.trials)
    spent, late = notes.measured.evaluations, notes.late
    samples = {trial.request.samples for trial in ledger.trials}
    of_base = round(math.fsum(count / ledger.full for count in samples), 3)
    stopped = [t for t in ledger.trials if t.stopped is not None and t.same_as is None]
    saved = math.fsum(t.request.samples / ledger.full - t.share for t in stopped)
    times = "once" if late == 1 else f"{late} times"
    parts = {
        f"{round(ledger.cost(), 3):.3g} for {_count(trials, 'trial')}": trials,
        f"{spent:.3g} for measuring layers": spent,
        f"{of_base:.3g} for the base": of_base,
        f"{_count(ledger.hits, 'repeated plan')}": ledger.hits,
        f"{len(stopped)} given up early (saved: {round(saved, 3):g})": len(stopped),
        f"a slow worker was not waited for {times}: the same seed may give other trials": late,
        f"with {', '.join(run.record.packages)}": len(run.record.packages),
    }
    words = "; ".join(part for part, count in parts.items() if count)
    return f"Cost in evaluations on all samples: {words}."


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


def loss_words(lost: Estimate, unit: str) -> str:
    """Return `0.041 ± 0.006 nats lost`; an infinite error is unknown."""
    return f"{_amount_words(lost, unit)} {'won' if lost.value < 0 else 'lost'}"


def _amount_words(number: Estimate, unit: str) -> str:
    """Return `0.041 ± 0.006 nats` without a sign; an infinite error is unknown."""
    return f"{with_error(abs(number.value), number.stderr)} {unit}"


def short_unit(unit: str) -> str:
    """Return a unit of losses without its reference: `%` of `% of the base's score`."""
    return unit.partition(" of ")[0]


HEALED_IN_VAIN: Final = "healing changed nothing"
"""The words for a plan that healing left unchanged."""


def stage_words(trial: Trial, ledger: Ledger) -> str:
    """Return `bridged`, `healed`, or `healing changed nothing`; nothing for a bare plan.

    Healing that leaves every layer as it was leaves the scores too.
    """
    stage, before = trial.request.stage, ledger.before(trial)
    if stage == "healed" and before is not None and trial.values is not None:
        return HEALED_IN_VAIN if before.values == trial.values else stage
    return "" if stage == "bare" else stage
