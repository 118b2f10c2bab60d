"""Whether what a search found is better than what is to be had without it: `verdict`.

Plans are compared sample by sample, on text that the search never saw where there is some. What is
no more than two standard errors better is no better, and then the simpler plan is the best one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from gptailor.lang.format import format_plan
from gptailor.plan.plan import Plan
from gptailor.report.measure import Estimate
from gptailor.report.summary import BaseRecord, RivalRecord, VerdictRecord
from gptailor.search.run.comparison import Comparison, Scores
from gptailor.search.run.notes import HeldNote, HeldScoresNote
from gptailor.search.run.origin import origin_words
from gptailor.search.run.trials import STARTS, Ledger, Trial
from gptailor.search.run.workers import BASE

MOST_STARTS = 8
"""Starting plans that what was found is compared with: the best ones."""


HeldOut: TypeAlias = Mapping[str, HeldNote]
"""Held-out scores by `held_key`."""


def held_key(trial: Trial | None) -> str:
    """A trial's plan, as that was evaluated, or the base."""
    if trial is None:
        return BASE
    stage = trial.request.stage
    return trial.plan if stage == "bare" else f"{trial.plan} {stage}"


# ------------------------------------------------------------------------------------ what is best


@final
@dataclass(frozen=True)
class Verdict:
    """What a search's result is worth.

    `found` has the best score, `best` is what is handed over, `against` the starting plan that
    `found` is the least better than, with that gain; `starts` is how many there are. `held` says
    that held-out samples decided. `base` is the gain over the uncut base, which is `no_larger`.
    """

    found: Trial
    best: Trial
    against: tuple[Trial, Estimate] | None
    starts: int
    held: bool
    measure: Comparison
    base: Estimate | None
    no_larger: bool

    @property
    def better(self) -> bool:
        """Whether it is better than every starting plan."""
        return self.against is not None and self.against[1].sure

    def record(self) -> VerdictRecord:
        """Return it as a summary has it."""
        against, base = None, None
        if self.against is not None:
            trial, gain = self.against
            against = RivalRecord(
                origin=origin_words(trial.request.origin),
                trial=trial.number,
                gain=gain.value,
                stderr=gain.finite_error,
            )
        if self.base is not None:
            base = BaseRecord(
                gain=self.base.value,
                stderr=self.base.finite_error,
                better=self.base.sure,
                no_larger=self.no_larger,
            )
        return VerdictRecord(
            better=self.better,
            worse=self.against is not None and self.against[1].reversed.sure,
            itself=self.against is not None and self.against[0] is self.found,
            against=against,
            starts=self.starts,
            held=self.held,
            unit=self.measure.unit,
            widths=self.measure.widths,
            numbers=self.measure.numbers,
            base=base,
        )


def rivals(ledger: Ledger, found: Trial, size: Callable[[Trial], float]) -> list[Trial]:
    """The best starting plans, evaluated as what was found was, the best first.

    Where size is an objective these are no larger than that.
    """
    plans = {trial.plan for trial in ledger.of(STARTS)}
    sized = any(aim.size for aim in ledger.aims)
    most = size(found) if sized else math.inf
    alike = [t for t in ledger.candidates() if t.plan in plans and size(t) <= most]
    return ledger.ranked(alike, MOST_STARTS)


def verdict(  # noqa: PLR0913 (all that it goes by)
    ledger: Ledger,
    measure: Comparison,
    scores: Callable[[Trial | None], Scores | None],
    plan_of: Callable[[Trial], Plan],
    size: Callable[[Trial], float],
    whole: float,
    *,
    held: bool,
) -> Verdict | None:
    """What the best trial is worth; None if no plan has a score.

    `scores` are those that decide, of a trial or of the base (None); `size` says how large a plan
    is, `whole` how large the base.
    """
    if (found := ledger.best()) is None:
        return None
    mine = scores(found)
    known = {one: s for one in rivals(ledger, found, size) if (s := scores(one)) is not None}
    theirs = scores(None)
    base = None if mine is None or theirs is None else measure.gain(mine, theirs)
    no_larger = whole <= size(found)
    made = (held, measure, base, no_larger)
    if mine is None or not known:
        return Verdict(found, found, None, len(known), *made)
    gains = {one: measure.gain(mine, s) for one, s in known.items()}
    if found in known:
        against = found, Estimate(0.0, 0.0)
    else:
        against = min(gains.items(), key=lambda pair: (pair[1].sure, pair[1].value))
    best = found
    if not against[1].sure:
        alike = {found: mine} | {one: s for one, s in known.items() if not gains[one].sure}
        kept = [
            one
            for one, s in alike.items()
            if not any(measure.gain(other, s).sure for other in alike.values())
        ]
        behind = {found: 0.0} | {one: gain.value for one, gain in gains.items()}
        best = min(
            kept or [found],
            key=lambda t: (size(t), *simplicity(plan_of(t)), behind[t], t.number),
        )
    return Verdict(found, best, against, len(known), *made)


def simplicity(plan: Plan) -> tuple[int, int]:
    """A plan is simpler the fewer models it names, then the fewer lines it has."""
    return len(plan.models), len(format_plan(plan).splitlines())


def scores_in(note: HeldNote | None) -> Scores | None:
    """Return the scores that a study notes of held-out samples; or None."""
    if not isinstance(note, HeldScoresNote):
        return None
    stderrs = [math.inf if error is None else error for error in note.stderrs]
    return Scores(note.values, stderrs, note.each)


def scores_of(trial: Trial) -> Scores | None:
    """A trial's own scores."""
    if trial.values is None or trial.stderrs is None:
        return None
    return Scores(trial.values, trial.stderrs, trial.per_sample)
