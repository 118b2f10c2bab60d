"""The end of a search, `SearchEnd`, and its summary for files, people and programs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, correlation, fmean, linear_regression, stdev
from typing import final

from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import STAGES
from gptailor.reporting.measure import shared_unit
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.curve import Sizes, curve
from gptailor.searching.final_scores import EvaluatedRequirements
from gptailor.searching.run.finalists import usual_plans
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import (
    Aim,
    AskedSettings,
    Ended,
    MeasuredCosts,
    NumberAtBound,
    RandomDraws,
    RepairWorth,
    RequiredRecord,
    RunRecord,
    SearchSummary,
    SizeRow,
    SummaryRow,
    WithScores,
    front_file,
)
from gptailor.searching.run.study import Study
from gptailor.searching.run.trials import (
    FINAL,
    RANDOM,
    RECIPES,
    STARTS,
    Ledger,
    Trial,
    json_numbers,
)
from gptailor.searching.search_text import short_recipe
from gptailor.searching.settings import Settings
from gptailor.searching.space.decode import plan_cut_words
from gptailor.searching.space.space import Space
from gptailor.searching.verdict import MOST_STARTS, Verdict, held_key, held_loss, rivals

ENOUGH = 12
"""The fewest random plans from which the best of more can be estimated."""


def aims_of(
    traits: Sequence[tuple[str, str, str]],
    objectives: Sequence[Objective],
    *,
    by_byte: bool = False,
) -> tuple[Aim, ...]:
    """Return a search's objectives with their units, and short labels that tell them apart."""
    names = [objective.name for objective in objectives]
    aims = []
    for (name, direction, scale), objective in zip(traits, objectives, strict=True):
        label = objective.name
        if names.count(objective.name) > 1:
            source = objective.arguments.get("file") or objective.arguments.get("task") or ""
            label = f"{objective.name} {Path(str(source)).stem}".strip()
        spec, words = OBJECTIVES[objective.name], (escaped_control(name), escaped_control(label))
        unit = spec.byte_unit or spec.unit if by_byte else spec.unit
        fields = (words[0], direction, scale, words[1], unit, spec.by != "samples")
        aims.append(Aim(*fields))  # type: ignore[arg-type] # as literals
    labels = [aim.label for aim in aims]
    return tuple(a._replace(label=a.name) if labels.count(a.label) > 1 else a for a in aims)


@final
@dataclass(frozen=True)
class SearchEnd:
    """All that is known when a search ends: its results are computed from this alone.

    `base` is the plan of the uncut base, `held` the number of held-out samples of each objective.
    `required` are the evaluated requirements, if there are any. `left_out` and `beyond` are
    starting plans without room, and beyond the required sizes.
    """

    record: RunRecord
    chosen: Settings
    ended: Ended
    study: Study
    ledger: Ledger
    space: Space
    sizes: Sizes
    base: Plan
    held: tuple[int, ...]
    required: EvaluatedRequirements | None
    left_out: tuple[str, ...]
    beyond: tuple[str, ...]

    def row(self, trial: Trial) -> SummaryRow:
        """Return a trial in a summary."""
        ledger, request, held = self.ledger, trial.request, self.study.typed.held_out
        before, lost = ledger.before(trial), ledger.loss(trial)
        held_lost = held_loss(ledger, held, trial)
        return SummaryRow(
            trial=trial.number,
            origin=origin_words(request.origin),
            cut=plan_cut_words(self.space, request.genome, request.stage),
            recipe=short_recipe(request.origin),
            samples=request.samples,
            seconds=round(trial.seconds, 1),
            stage=request.stage,
            before=None if before is None else before.values,
            values=trial.values,
            failure=None if trial.failure is None else str(trial.failure),
            stderrs=json_numbers(trial.stderrs),
            lost=lost and lost.value,
            lost_stderr=lost and lost.finite_error,
            held=held.get(held_key(trial)),
            held_lost=held_lost and held_lost.value,
            held_lost_stderr=held_lost and held_lost.finite_error,
        )


def search_summary(
    end: SearchEnd,
    verdict: Verdict | None,
    commands: Sequence[str],
    at_bounds: Sequence[NumberAtBound],
) -> SearchSummary:
    """Return the summary of a search."""
    ledger, notes = end.ledger, end.study.typed
    drawn = drawn_plans(ledger)
    top, best = (None, None) if verdict is None else (verdict.found, verdict.best)
    found, handed, recipe, luckiest = (
        None if trial is None else end.row(trial)
        for trial in (top, best, best_recipe(ledger), ledger.best(drawn))
    )
    asked = {trial.request.samples for trial in ledger.trials}
    stopped = [t for t in ledger.trials if t.stopped is not None and t.same_as is None]
    return SearchSummary(
        **{name: getattr(end.record, name) for name in AskedSettings.model_fields},
        ended=end.ended,
        objectives=ledger.aims,
        deciding=ledger.deciding,
        loss_unit=ledger.loss_unit,
        trials=len(ledger.trials),
        samples=ledger.full,
        held=end.held,
        late=notes.late,
        cost=round(ledger.cost(), 3),
        hits=ledger.hits,
        stopped=len(stopped),
        spared=round(sum(t.request.samples / ledger.full - t.share for t in stopped), 3),
        failed=sum(trial.values is None for trial in ledger.trials),
        seconds=round(math.fsum(trial.seconds for trial in ledger.trials), 1),
        measured=MeasuredCosts(
            evaluations=notes.measured.evaluations,
            seconds=notes.measured.seconds,
            base=round(math.fsum(samples / ledger.full for samples in asked), 3),
        ),
        base=WithScores(
            values=ledger.references.get(ledger.full), held=notes.held_out.get(held_key(None))
        ),
        verdict=None if verdict is None else verdict.record,
        found=found,
        best=handed,
        front=tuple(map(end.row, ledger.front())),
        sizes=tuple(_places(end, top, best)),
        starts=tuple(map(end.row, best_starts(ledger))),
        recipe=recipe,
        recipes=len({trial.plan for trial in ledger.of(RECIPES)}),
        final=tuple(map(end.row, ledger.of(FINAL))),
        repair=repair_worth(ledger),
        random=RandomDraws(
            trials=len(drawn),
            best=luckiest,
            expected=expected(ledger, drawn),
        ),
        required=_required(ledger, end.required, best),
        left_out=end.left_out,
        beyond=end.beyond,
        at_bounds=tuple(at_bounds),
        commands=tuple(commands),
    )


def _places(end: SearchEnd, top: Trial | None, best: Trial | None) -> Iterator[SizeRow]:
    """Yield the best plan of each size; the plan that is handed over stands for the plan found.

    The mean loss is by all objectives that aren't sizes. Its `share` of the base's scores is None
    where an objective has none, as `kl`, and its `nats` where the objectives have no common unit.
    """
    ledger = end.ledger
    aims = [ledger.aims[number] for number in ledger.rated]
    by_base, unit = all(aim.scale == "base" for aim in aims), shared_unit(aim.unit for aim in aims)
    for trial, size in curve(ledger, end.sizes):
        handed = best is not None and trial is top and end.sizes.of(best) == size
        chosen = best if handed and best is not None else trial
        lost = ledger.loss(chosen, ledger.rated) if unit else None
        yield SizeRow(
            **dict(end.row(chosen)),
            **size._asdict(),
            file=front_file(chosen.number),
            share=ledger.mean_loss(chosen, ledger.rated) if by_base else None,
            nats=lost and lost.value,
        )


def _required(
    ledger: Ledger, result: EvaluatedRequirements | None, best: Trial | None
) -> RequiredRecord | None:
    """Return the requirements and the best plan's values, or else the nearest plan's."""
    if result is None:
        return None
    nearest = None if result.nearest is None else ledger.trials[result.nearest]
    shown = best or nearest
    return RequiredRecord(
        evaluated=result.plans,
        whole=result.whole,
        met=result.met,
        nearest=None if nearest is None else front_file(nearest.number),
        rows=() if shown is None else tuple(result.rows.get(held_key(shown), ())),
    )


def finalists(ledger: Ledger, sizes: Sizes) -> list[Trial]:
    """Return a summary's trials: the best, random, starting plans, the front, each size's.

    The rivals of the best trial are among them, though other trials may be better.
    """
    top = ledger.best()
    alike = rivals(ledger, top, lambda trial: sizes.of(trial).parameters) if top else []
    chosen = (
        top,
        ledger.best(drawn_plans(ledger)),
        best_recipe(ledger),
        *best_starts(ledger),
        *alike,
        *ledger.front(),
        *(trial for trial, _ in curve(ledger, sizes)),
        *(trial for trial in ledger.of(FINAL) if trial.values is not None),
    )
    return [trial for trial in chosen if trial is not None]


_FEWEST_COMPARED = 3
"""The fewest finalists that show what a loss before repair is worth after it."""


def repair_worth(ledger: Ledger) -> RepairWorth | None:
    """Compare the finalists' mean losses before and after repair; None for too few plans."""
    pairs = [(ledger.before(trial), trial) for trial in ledger.of(FINAL)]
    losses = [(ledger.mean_loss(a), ledger.mean_loss(b)) for a, b in pairs if a is not None]
    finite = [pair for pair in losses if all(map(math.isfinite, pair))]
    before, after = zip(*finite, strict=True) if finite else ((), ())
    if len(finite) < _FEWEST_COMPARED or min(len(set(before)), len(set(after))) == 1:
        return None
    ranks = [[sorted(each).index(loss) for loss in each] for each in (before, after)]
    return RepairWorth(
        slope=round(linear_regression(before, after).slope, 3),
        correlation=round(correlation(*ranks), 3),
        plans=len(finite),
    )


def best_recipe(ledger: Ledger) -> Trial | None:
    """Return the best recipe that was compared with nothing dropped; None without recipes."""
    return ledger.best([t for t in ledger.of(RECIPES) if t.full and t.same_as is None])


def best_starts(ledger: Ledger) -> list[Trial]:
    """Return starting plans at full fidelity, repaired ones first, then the best; each once."""
    plans = usual_plans(ledger)
    full = [
        trial
        for trial in ledger.of(STARTS, FINAL)
        if trial.full and trial.values and trial.same_as is None and trial.plan in plans
    ]
    stages = sorted({t.request.stage for t in full}, key=STAGES.index, reverse=True)
    alike = [[t for t in full if t.request.stage == stage] for stage in stages]
    return [t for of in alike for t in ledger.ranked(of, MOST_STARTS)][:MOST_STARTS]


def drawn_plans(ledger: Ledger) -> list[Trial]:
    """Return the random plans in the budget, each once."""
    return [t for t in ledger.of(RANDOM) if t.same_as is None]


def expected(ledger: Ledger, drawn: Sequence[Trial]) -> float | None:
    """Return the expected smallest loss of as many random plans as the search cost.

    It is a mean loss, in the ledger's `loss_unit`. It fits a normal law to the drawn plans: a cheap
    estimate, while random search itself would cost as much again.
    """
    scores = [lost.value for trial in drawn if (lost := ledger.loss(trial)) is not None]
    if len(scores) < ENOUGH:
        return None
    count = max(ledger.cost(), 1.0)
    quantile = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))  # Blom, 1958
    return fmean(scores) - quantile * stdev(scores)
