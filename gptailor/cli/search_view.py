"""How a search's events look: lines on a pipe, a live view on a terminal."""

import time
from collections import deque
from collections.abc import Iterator
from typing import final

from gptailor.cli.options import report, say
from gptailor.plan.stage import at_stage
from gptailor.report.found import lost
from gptailor.report.progress import LiveView, ScoreLine, Shown, Standing, clock
from gptailor.report.scores import shown_number
from gptailor.search import search as events
from gptailor.search.run.trials import STARTS, Ledger, Trial
from gptailor.search.space.decode import decode


@final
class Lines:
    """A line for each trial."""

    def __init__(self) -> None:
        self._begun: events.Begun | None = None
        self._best: int | None = None
        self._said: set[str] = set()

    def __call__(self, event: events.SearchEvent) -> None:
        """Print what happened, but for what a trial says when it is over."""
        match event:
            case events.Warned(faults):
                report(faults)
            case events.Doing(what, done, total):
                self._once(what, steps(what, done, total))
            case events.Estimated():
                self._once("estimate", estimate(event))
            case events.Begun(ledger):
                self._begun = event
                if count := len(ledger.trials):
                    say(f"going on after {count} trial{'s' * (count != 1)}", err=True)
            case events.Scored(trial):
                assert self._begun is not None
                ledger, budget, _ = self._begun
                best, known = ledger.best(), self._best
                self._best = None if best is None else best.number
                mark = "  best so far" if best is trial and trial.number != known else ""
                spent = f"{ledger.cost():.4g}/{budget.trials}"
                say(f"{spent} {in_a_line(trial, ledger)}{mark}", err=True)

    def _once(self, what: str, line: str) -> None:
        """Say a line, if nothing was said of that yet."""
        if what not in self._said:
            say(line, err=True)
        self._said.add(what)


def in_a_line(trial: Trial, ledger: Ledger) -> str:
    """`trial 12 (surrogate): nll 3.785 ± 0.041`."""
    head = objective_names(trial)
    if trial.values is None or trial.stderrs is None:
        return f"{head}: failed: {trial.failure}"
    before = ledger.before(trial)
    was = before.values if before is not None else None
    scores = (
        f"{aim.short} {f'{value:,.0f}' if aim.size and not error else shown_number(value, error)}"
        + ("" if was is None else f" (before: {shown_number(was[i])})")
        for i, (aim, value, error) in enumerate(
            zip(ledger.aims, trial.values, trial.stderrs, strict=True)
        )
    )
    return f"{head}: {', '.join(scores)}{_tail(trial)}"


def objective_names(trial: Trial) -> str:
    """`trial 12 (surrogate)`."""
    return f"trial {trial.number} ({trial.request.origin})"


def _tail(trial: Trial) -> str:
    """On how few samples, how far repaired, and whose evaluation it was."""
    request = trial.request
    found = "" if trial.full else f", {trial.samples} samples"
    found += "" if trial.stopped is None else f", given up of {request.samples}"
    found += "" if request.stage == "bare" else f", {request.stage}"
    return found + (f", as trial {trial.same_as}" if trial.same_as is not None else "")


def steps(what: str, done: int, total: int) -> str:
    """`measuring …: 3 of 24`."""
    return f"{what}: {done} of {total}" if total else what


def estimate(of: events.Estimated) -> str:
    """What trials that are left will take, if each takes what the base took."""
    whole = clock(of.evaluations * of.seconds)
    return (
        f"{of.evaluations:.4g} evaluations of {of.samples} samples at {of.seconds:.2g} s, as the"
        f" base took: about {whole}; judging and held-out scores come on top"
    )


_RECENT = 12
"""Trials by which it is said how long the rest takes."""


@final
class Screen:
    """A view that is drawn anew while the search goes on."""

    def __init__(self) -> None:
        self._live = LiveView()
        self._search: events.Begun | None = None
        self._begun = time.monotonic()
        self._measuring: float | None = None
        self._seconds: float | None = None
        self._pace: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._shown: tuple[int, Shown] | None = None

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(*exception)

    def __call__(self, event: events.SearchEvent) -> None:
        """Say what is done, or draw anew; warnings stay above the view."""
        match event:
            case events.Warned(faults):
                report(faults)
            case events.Doing(what, done, total):
                self._live.say(steps(what, done, total) + self._rest(done, total))
            case events.Begun():
                self._search = event
                self._begun = time.monotonic()
                self._draw()
            case events.Estimated(_, seconds):
                self._seconds = self._seconds or seconds
                self._draw()
            case events.Asked():  # what it takes is compiled when it is first asked
                self._live.say("working out what to try next")
            case events.Started(plans, samples):
                many = "1 plan" if plans == 1 else f"{plans} plans"
                self._live.say(f"evaluating {many} on {samples} samples")
            case events.Scored(trial):
                self._draw(trial)

    def _each(self, spent: float) -> float | None:
        """Seconds of one evaluation: by the last trials, before those by the base."""
        self._pace.append((time.monotonic(), spent))
        (before, cost), now = self._pace[0], time.monotonic()
        return (now - before) / (spent - cost) if spent > cost else self._seconds

    def _rest(self, done: int, total: int) -> str:
        """How long the rest of some steps takes, as long as those did that were seen here."""
        now = time.monotonic()
        if not total or not done or self._measuring is None:
            self._measuring = now if total else None
            return ""
        return f", {clock((now - self._measuring) / done * (total - done))} left"

    def _draw(self, last: Trial | None = None) -> None:
        assert self._search is not None
        ledger, budget, _ = self._search
        spent = ledger.cost()
        start = ledger.best([t for t in ledger.of(STARTS) if t.full and t.values is not None])
        seconds = self._each(spent)
        left = max(budget.trials - budget.measured - spent, 0.0)
        best = self._best(ledger)
        self._live.show(
            Standing(
                trials=len(ledger.trials),
                spent=spent + budget.measured,
                budget=budget.trials,
                hits=ledger.hits,
                failed=sum(trial.values is None for trial in ledger.trials),
                per_minute=60 / seconds if seconds else 0.0,
                left=None if seconds is None else left * seconds,
                last="" if last is None else objective_names(last) + _tail(last),
                best=best,
                start="" if start is None else objective_names(start),
                front=len(ledger.front()),
                objectives=tuple(_scored(ledger, ledger.best(), start, last)),
                stopped=sum(trial.stopped is not None for trial in ledger.trials),
            )
        )

    def _best(self, ledger: Ledger) -> Shown | None:
        assert self._search is not None
        best = ledger.best()
        if best is None:
            return None
        if self._shown is None or self._shown[0] != best.number:
            space = self._search.space
            plan = at_stage(decode(space, best.request.genome), best.request.stage)
            beside = shares(best, ledger) if len(ledger.aims) == 1 else ""
            shown = Shown(objective_names(best), beside, plan, space.layers)
            self._shown = best.number, shown
        return self._shown[1]


def _scored(
    ledger: Ledger, best: Trial | None, start: Trial | None, last: Trial | None
) -> Iterator[ScoreLine]:
    base = ledger.references.get(ledger.full)
    for i, aim in enumerate(ledger.aims):
        of_base = "" if base is None else shown_number(base[i])
        yield ScoreLine(aim.short, of_base, *(_score(one, i) for one in (start, best, last)))


def _score(trial: Trial | None, i: int) -> str:
    if trial is None:
        return ""
    if trial.values is None or trial.stderrs is None:
        return "failed"
    return shown_number(trial.values[i], trial.stderrs[i])


def shares(trial: Trial, ledger: Ledger) -> str:
    """`0.412 nats lost`; nothing where no score is beside the base's."""
    base = ledger.references.get(trial.samples)
    if trial.values is None or base is None:
        return ""
    rows = zip(ledger.aims, trial.values, base, strict=True)
    return ", ".join(filter(None, (lost(aim._asdict(), value, of) for aim, value, of in rows)))
