"""The views of a search's events: lines, or the view of a plugin on a terminal."""

import textwrap
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import final

from gptailor.cli.options import say, say_faults, width
from gptailor.plan.doors import Door
from gptailor.plan.events import Progress
from gptailor.reporting.quantities import clock, shown_number
from gptailor.searching import search as events
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import FINAL, Ledger, Trial
from gptailor.searching.search_text import loss_words, short_recipe, short_unit, stage_words
from gptailor.searching.space.decode import plan_cut_words
from gptailor.searching.space.roles import cuts
from gptailor.searching.space.space import Space

VIEWS: Door[Callable[[], AbstractContextManager[events.OnSearchEvent]]] = Door(
    "views", "view", type, {}
)
"""Views of a search by their place: `terminal`. Each is a context with a receiver of events."""

_RECENT = 12
"""The number of recent trials for the estimate of the time left."""
_LEAST_NAME = 20
"""The least width of a plan's name in a line."""


@final
class TimeLeft:
    """The time left of a `search` that has begun: trials, at the recent pace, then repairs."""

    search: events.Begun
    """The first event of a search that concerns trials."""

    def __init__(self) -> None:
        self._base: float | None = None
        self._pace = deque([(time.monotonic(), 0.0)], maxlen=_RECENT)
        self._repaired: list[float] = []

    def __call__(self, event: events.SearchEvent) -> None:
        """Update the estimate with an event."""
        now = time.monotonic()
        match event:
            case events.Begun(ledger):
                self.search, self._pace[0] = event, (now, ledger.cost())
            case events.Estimated(_, seconds):
                self._base = self._base or seconds
            case events.Scored(trial) if trial.request.phase == FINAL:
                self._repaired.append(now)
            case events.Scored():
                self._pace.append((now, self.search.ledger.cost()))

    @property
    def each(self) -> float | None:
        """Seconds of an evaluation: the pace of recent trials, or else of the base."""
        (before, cost), (now, spent) = self._pace[0], self._pace[-1]
        return (now - before) / (spent - cost) if spent > cost else self._base

    @property
    def spent(self) -> str:
        """The evaluations spent, of the budget: `5.333/12`."""
        budget = self.search.budget
        return f"{self.search.ledger.cost() + budget.measured:.4g}/{budget.evaluations:g}"

    @property
    def seconds(self) -> float | None:
        """Seconds of all the work left, including repairs if their time is known."""
        if (each := self.each) is None:
            return None
        budget = self.search.budget
        repaired = self._count if self._repaired else 0  # the time of repairs includes their scores
        evaluations = budget.evaluations - budget.measured - self.search.ledger.cost() - repaired
        return max(evaluations, 0.0) * each + (self._repairs or 0.0)

    @property
    def words(self) -> str:
        """The text `12:40 left`, with the repairs after that, if their time is unknown."""
        if self.seconds is None:
            return ""
        return f"{clock(self.seconds)} left" + ", then repairs" * (self._repairs is None)

    @property
    def then(self) -> str:
        """The text `healing 2 plans at most: about 8:00`, or an empty text without repairs left."""
        if not (count := self._count):
            return ""
        plan, budget = self.search.space.plan, self.search.budget
        names = ["bridging"] * bool(plan.bridges) + ["healing"] * (budget.final == "healed")
        takes = self._repairs
        about = "" if takes is None else f": about {clock(takes)}"
        return f"{' and '.join(names)} {count} plan{'s' * (count != 1)} at most{about}"

    @property
    def _count(self) -> int:
        return max(self.search.budget.kept - len(self.search.ledger.of(FINAL)), 0)

    @property
    def _repairs(self) -> float | None:
        """Seconds of all repairs left: from earlier repairs, or else from their tokens."""
        if not self._count:
            return 0.0
        if self._repaired:
            passed = self._repaired[-1] - self._pace[-1][0]
            return self._count * passed / len(self._repaired)
        cost, each = self.search.repair, self._base or self.each  # as tokens took the base
        return None if cost is None or each is None else self._count * cost * each


@final
class Lines:
    """A receiver of events that prints a line for each trial."""

    def __init__(self) -> None:
        self._rest = TimeLeft()
        self._said: set[str] = set()

    def __call__(self, event: events.SearchEvent) -> None:
        """Print an event, except the start of a trial."""
        self._rest(event)
        match event:
            case events.Warned(faults):
                say_faults(faults)
            case Progress("searching", done, total, what):
                self._once(what, steps(what, done, total))
            case events.Estimated():
                words = estimate(event, self._rest.then, self._rest.search.budget)
                self._once(_ESTIMATE, words)
            case events.Begun(ledger):
                if cuts(event.space.plan):
                    say(stages_words(event.budget), err=True)
                if count := len(ledger.trials):
                    say(f"going on after {count} trial{'s' * (count != 1)}", err=True)
            case events.Scored(trial):
                self._said &= {_ESTIMATE}  # the next search may take the same steps
                ledger, _, space, _ = self._rest.search
                mark = ", best" if ledger.best() is trial else ""
                scored = f"same plan as trial {trial.same_as}"
                if trial.same_as is None:
                    scored = scores_words(trial, ledger) + trial_remarks(trial, ledger) + mark
                after = "; ".join(filter(None, (scored, self._rest.words)))
                room = max(_LEAST_NAME, width() - len(self._rest.spent) - len(after) - 4)
                name = textwrap.shorten(plan_name(trial, space), room, placeholder=" …")
                say(f"{self._rest.spent}  {name}; {after}", err=True)

    def _once(self, what: str, line: str) -> None:
        """Print a line, unless `what` was printed already."""
        if what not in self._said:
            say(line, err=True)
        self._said.add(what)


def stages_words(budget: Budget) -> str:
    """Return the order of a search's stages, and how each stage is scored."""
    parts = ["plans are scored first with nothing dropped"] * budget.separate
    parts.append(f"cuts are scored {budget.stage(budget.full)}")
    if budget.final is not None:
        plans = "plan" if budget.finalists == 1 else f"{budget.finalists} plans"
        parts.append(f"then the best {plans} and starting plans, {budget.final}")
    return "; ".join(parts)


def plan_name(trial: Trial, space: Space) -> str:
    """Return a trial's number and its plan: `7: L12..L18 dropped, math 0.6`."""
    request = trial.request
    cut = plan_cut_words(space, request.genome, request.stage)
    plan = ", ".join(filter(None, (cut, short_recipe(request.origin))))
    return f"{trial.number}: {plan or origin_words(request.origin)}"


def scores_words(trial: Trial, ledger: Ledger) -> str:
    """Return a trial's score with its error, or the mean loss by several objectives."""
    if trial.values is None or trial.stderrs is None:
        return f"failed: {trial.failure}"
    if len(ledger.rated) > 1:
        lost = ledger.loss(trial)
        unit = short_unit(ledger.loss_unit)
        return "" if lost is None else loss_words(lost, unit)
    [number] = ledger.rated
    before = ledger.before(trial)
    was = (
        ""
        if before is None or before.values is None
        else f"{shown_number(before.values[number])} → "
    )
    score = shown_number(trial.values[number], trial.stderrs[number])
    return f"{ledger.aims[number].short} {was}{score}"


def trial_remarks(trial: Trial, ledger: Ledger) -> str:
    """Return a trial's number of samples if not all, and its repair."""
    words = "" if trial.full else f", {trial.samples} samples"
    words += "" if trial.stopped is None else ", given up"
    repair = stage_words(trial, ledger)
    return words + (f", {repair}" if repair else "")


def steps(what: str, done: int, total: int) -> str:
    """Return a step in words: `measuring …: 3 of 24`."""
    return f"{what}: {done} of {total}" if total else what


_ESTIMATE = "estimate"


def estimate(of: events.Estimated, then: str, budget: Budget) -> str:
    """Return the time of the trials left, at the base's pace, and the work after them (`then`).

    The time of bridging a trial isn't known before the first trial.
    """
    parts = (
        f"{of.evaluations:.4g} evaluations of {of.samples} samples at {of.seconds:.2g} s, as the"
        f" base took: about {clock(of.evaluations * of.seconds)}",
        budget.shortage,
        f"then {then}" * bool(then),
        "bridging each cut comes on top" * (budget.stage(budget.full) == "bridged"),
        "evaluating finalists and held-out scores come on top",
    )
    return "; ".join(filter(None, parts))
