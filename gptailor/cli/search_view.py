"""How a search's events look: lines on a pipe, a live view on a terminal."""

import time
from typing import final

from gptailor.cli.options import report, say
from gptailor.report.found import lost
from gptailor.report.progress import LiveView, Shown, Standing
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

    def __call__(self, event: events.SearchEvent) -> None:
        """Print what happened, but for what a trial says when it is over."""
        match event:
            case events.Warned(faults):
                report(faults)
            case events.Doing(what):
                say(what, err=True)
            case events.Begun(ledger):
                self._begun = event
                if ledger.trials:
                    say(f"going on after {len(ledger.trials)} trials", err=True)
            case events.Scored(trial):
                assert self._begun is not None
                ledger, budget, _ = self._begun
                best, known = ledger.best(), self._best
                self._best = None if best is None else best.number
                mark = "  best so far" if best is trial and trial.number != known else ""
                spent = f"{ledger.cost():.4g}/{budget.trials}"
                say(f"{spent} {in_a_line(trial, ledger)}{mark}", err=True)


def in_a_line(trial: Trial, ledger: Ledger) -> str:
    """`trial 12 (surrogate): nll 3.785 ± 0.041`."""
    request = trial.request
    head = f"trial {trial.number} ({request.origin})"
    if trial.values is None or trial.stderrs is None:
        return f"{head}: failed: {trial.failure}"
    before = ledger.before(trial)
    was = before.values if before is not None else None
    scores = (
        f"{aim.short} {shown_number(value, error)}"
        + ("" if was is None else f" (before: {shown_number(was[i])})")
        for i, (aim, value, error) in enumerate(
            zip(ledger.aims, trial.values, trial.stderrs, strict=True)
        )
    )
    tail = "" if trial.full else f", {trial.samples} samples"
    tail += "" if trial.stopped is None else f", given up of {request.samples}"
    tail += "" if request.stage == "bare" else f", {request.stage}"
    tail += f", as trial {trial.same_as}" if trial.same_as is not None else ""
    return f"{head}: {', '.join(scores)}{tail}"


@final
class Screen:
    """A view that is drawn anew while the search goes on."""

    def __init__(self) -> None:
        self._live = LiveView()
        self._search: events.Begun | None = None
        self._begun = time.monotonic()
        self._before = 0.0
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
            case events.Doing(what):
                self._live.say(what)
            case events.Begun(ledger):
                self._search = event
                self._begun, self._before = time.monotonic(), ledger.cost()
                self._draw()
            case events.Asked():  # what it takes is compiled when it is first asked
                self._live.say("working out what to try next")
            case events.Started(plans, samples):
                many = "1 plan" if plans == 1 else f"{plans} plans"
                self._live.say(f"evaluating {many} on {samples} samples")
            case events.Scored(trial):
                self._draw(trial)

    def _draw(self, last: Trial | None = None) -> None:
        assert self._search is not None
        ledger, budget, _ = self._search
        spent = ledger.cost()
        start = ledger.best([t for t in ledger.of(STARTS) if t.full and t.values is not None])
        elapsed = time.monotonic() - self._begun
        speed = (spent - self._before) / elapsed if elapsed > 0 else 0.0
        self._live.show(
            Standing(
                trials=len(ledger.trials),
                spent=spent,
                budget=budget.trials,
                hits=ledger.hits,
                failed=sum(trial.values is None for trial in ledger.trials),
                per_minute=60 * speed,
                left=(budget.trials - spent) / speed if speed > 0 else None,
                last="" if last is None else in_a_line(last, ledger),
                best=self._best(ledger),
                start="" if start is None else in_a_line(start, ledger),
                front=len(ledger.front()),
                objectives=tuple(aim.short for aim in ledger.aims),
            )
        )

    def _best(self, ledger: Ledger) -> Shown | None:
        assert self._search is not None
        best = ledger.best()
        if best is None:
            return None
        if self._shown is None or self._shown[0] != best.number:
            space = self._search.space
            plan = decode(space, best.request.genome)
            shown = Shown(in_a_line(best, ledger), shares(best, ledger), plan, space.layers)
            self._shown = best.number, shown
        return self._shown[1]


def shares(trial: Trial, ledger: Ledger) -> str:
    """`0.412 nats lost`; nothing where no score is beside the base's."""
    base = ledger.references.get(trial.samples)
    if trial.values is None or base is None:
        return ""
    rows = zip(ledger.aims, trial.values, base, strict=True)
    return ", ".join(filter(None, (lost(aim._asdict(), value, of) for aim, value, of in rows)))
