"""Whether what a search found is better than what is to be had without it: `verdict`.

Plans are compared sample by sample, on text that the search never saw where there is some. What is
no more than two standard errors better is no better, and then the simpler plan is the best one.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

from gptailor.evaluate.outcome import PerSample, paired_difference
from gptailor.lang.format import format_plan
from gptailor.plan.plan import Plan
from gptailor.report.summary import Aim, BaseRecord, RivalRecord, VerdictRecord
from gptailor.search.run.notes import HeldNote, HeldScoresNote
from gptailor.search.run.origin import origin_words
from gptailor.search.run.scores import PerObjective
from gptailor.search.run.trials import STARTS, Ledger, Trial
from gptailor.search.run.workers import BASE

SURE = 2.0
"""So many standard errors better is better."""
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


@final
class Scores(NamedTuple):
    """A plan's scores by each objective: values, standard errors, and what each sample gave."""

    values: Sequence[float]
    stderrs: Sequence[float]
    each: PerObjective


@final
class Gain(NamedTuple):
    """How much better a plan is than another, the mean over objectives, and its standard error."""

    value: float
    stderr: float

    @property
    def sure(self) -> bool:
        """Whether it is better by more than chance."""
        return self.value > SURE * self.stderr

    @property
    def finite_error(self) -> float | None:
        """The standard error as JSON has it, which has no infinity."""
        return self.stderr if math.isfinite(self.stderr) else None


@final
@dataclass(frozen=True)
class Compared:
    """How plans are compared by those of several objectives that have these `numbers`.

    `widths` are what one of each objective's scores is measured by: 1 where all are in one `unit`,
    else the base's score, or the spread of the starting plans'. `samples` are equal for objectives
    that are measured on the same samples, whose errors go together.
    """

    aims: tuple[Aim, ...]
    numbers: tuple[int, ...]
    widths: tuple[float, ...]
    samples: tuple[Hashable, ...]
    unit: str = ""

    def gain(self, mine: Scores, theirs: Scores) -> Gain:
        """How much better the first scores are."""
        total, variance = 0.0, 0.0
        for group in dict.fromkeys(self.samples[i] for i in self.numbers):
            numbers = [i for i in self.numbers if self.samples[i] == group]
            moves: list[list[float]] = []
            for i in numbers:
                sign = -1.0 if self.aims[i].direction == "minimize" else 1.0
                scale = sign / self.widths[i]
                a, b = _each(mine, i), _each(theirs, i)
                if a is None or b is None or not (a.sums and b.sums):
                    total += scale * (mine.values[i] - theirs.values[i])
                    errors = (mine.stderrs[i], theirs.stderrs[i])
                    variance += scale**2 * sum(error**2 for error in errors)
                    continue
                found = paired_difference(a, b)
                total += scale * found.value
                if math.isinf(found.stderr):
                    variance = math.inf
                else:
                    moves.append([scale * one for one in _moves(a, b)])
            variance += _variance(moves)
        count = len(self.numbers)
        return Gain(total / count, math.sqrt(variance) / count)


def _each(of: Scores, number: int) -> PerSample | None:
    return of.each[number] if number < len(of.each) else None


def _moves(a: PerSample, b: PerSample) -> list[float]:
    """How much each sample moves the difference."""
    n = min(len(a.sums), len(b.sums))
    first = (PerSample(one.sums[:n], one.counts[:n], one.exponential) for one in (a, b))
    return [u - v for u, v in zip(*(one.influences() for one in first), strict=True)]


def _variance(moves: Sequence[Sequence[float]]) -> float:
    """That of the sum of differences on the same samples; of other samples each by itself."""
    if len({len(one) for one in moves}) > 1:
        return sum(_variance([one]) for one in moves)
    sums = [math.fsum(column) for column in zip(*moves, strict=True)]
    return len(sums) / (len(sums) - 1) * math.fsum(s * s for s in sums) if len(sums) > 1 else 0.0


def measure_of(
    ledger: Ledger, base: Sequence[float] | None, samples: Sequence[Hashable]
) -> Compared:
    """How the plans of a search are compared; `base` are the base's scores. Sizes don't count.

    Where another objective is preferred it counts alone.
    """
    numbers = ledger.judging
    units = {ledger.aims[n].unit for n in numbers}
    if len(units) == 1 and (unit := units.pop()) not in ("", "accuracy"):
        return Compared(ledger.aims, numbers, (1.0,) * len(ledger.aims), tuple(samples), unit)
    widths = []
    for number, aim in enumerate(ledger.aims):
        if aim.scale == "base" and base is not None:
            width = abs(base[number])
        else:
            finite = [one for one in ledger.spreads[number] if math.isfinite(one)]
            width = max(finite, default=0.0) - min(finite, default=0.0)
        widths.append(width or 1.0)
    return Compared(ledger.aims, numbers, tuple(widths), tuple(samples))


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
    against: tuple[Trial, Gain] | None
    starts: int
    held: bool
    measure: Compared
    base: Gain | None
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
            worse=self.against is not None and _reverse(self.against[1]).sure,
            itself=self.against is not None and self.against[0] is self.found,
            against=against,
            starts=self.starts,
            held=self.held,
            unit=self.measure.unit,
            widths=self.measure.widths,
            numbers=self.measure.numbers,
            base=base,
        )


def _reverse(gain: Gain) -> Gain:
    return Gain(-gain.value, gain.stderr)


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
    measure: Compared,
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
        against = found, Gain(0.0, 0.0)
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
    """Return the scores that a study notes of held-out samples; None if there are none."""
    if not isinstance(note, HeldScoresNote):
        return None
    stderrs = [math.inf if error is None else error for error in note.stderrs]
    return Scores(note.values, stderrs, note.each)


def scores_of(trial: Trial) -> Scores | None:
    """A trial's own scores."""
    if trial.values is None or trial.stderrs is None:
        return None
    return Scores(trial.values, trial.stderrs, trial.per_sample)
