"""A view of a search's events on a terminal, drawn again after each event."""

import time
from collections.abc import Iterator
from typing import final

from gptailor.cli.options import say_faults
from gptailor.cli.search_view import TimeLeft, steps, trial_name, trial_remarks
from gptailor.plugins.live.live_view import LiveView, ScoreLine, Shown, Standing
from gptailor.reporting.quantities import clock, shown_number
from gptailor.searching import search as events
from gptailor.searching.run.trials import STARTS, Ledger, Trial
from gptailor.searching.search_text import beside_base, beside_base_words
from gptailor.searching.space.decode import plan_at_stage


@final
class Screen:
    """A view of a search on a terminal, drawn again after each event."""

    def __init__(self) -> None:
        self._live = LiveView()
        self._rest = TimeLeft()
        self._measuring: float | None = None
        self._shown: tuple[int, Shown] | None = None

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(*exception)

    def __call__(self, event: events.SearchEvent) -> None:
        """Print a step, or draw the view again. Warnings stay above the view."""
        self._rest(event)
        match event:
            case events.Warned(faults):
                say_faults(faults)
            case events.Doing(what, done, total):
                self._live.say(steps(what, done, total) + self._steps_left(done, total))
            case events.Begun() | events.Estimated():
                self._draw()
            case events.Asked():  # what it takes is compiled when it is first asked
                self._live.say("working out what to try next")
            case events.Started(plans, samples):
                many = "1 plan" if plans == 1 else f"{plans} plans"
                self._live.say(f"evaluating {many} on {samples} samples")
            case events.Scored(trial):
                self._draw(trial)

    def _steps_left(self, done: int, total: int) -> str:
        """Return the time left for some steps, at the pace of the steps so far."""
        now = time.monotonic()
        if not total or not done or self._measuring is None:
            self._measuring = now if total else None
            return ""
        return f", {clock((now - self._measuring) / done * (total - done))} left"

    def _draw(self, last: Trial | None = None) -> None:
        ledger, budget, _, _ = self._rest.search
        spent, seconds = ledger.cost(), self._rest.each
        start = ledger.best([t for t in ledger.of(STARTS) if t.full and t.values is not None])
        best = self._best(ledger)
        self._live.show(
            Standing(
                trials=len(ledger.trials),
                spent=spent + budget.measured,
                budget=budget.trials,
                hits=ledger.hits,
                failed=sum(trial.values is None for trial in ledger.trials),
                per_minute=60 / seconds if seconds else 0.0,
                left=self._rest.seconds,
                then=self._rest.then,
                last="" if last is None else trial_name(last) + trial_remarks(last, ledger),
                best=best,
                start="" if start is None else trial_name(start),
                front=len(ledger.front()),
                objectives=tuple(_scored(ledger, ledger.best(), start, last)),
                stopped=sum(trial.stopped is not None for trial in ledger.trials),
            )
        )

    def _best(self, ledger: Ledger) -> Shown | None:
        best = ledger.best()
        if best is None:
            return None
        if self._shown is None or self._shown[0] != best.number:
            space = self._rest.search.space
            plan = plan_at_stage(space, best.request.genome, best.request.stage)
            beside = _shares(best, ledger) if len(ledger.aims) == 1 else ""
            shown = Shown(trial_name(best), beside, plan, space.layers)
            self._shown = best.number, shown
        return self._shown[1]


def _scored(
    ledger: Ledger, best: Trial | None, start: Trial | None, last: Trial | None
) -> Iterator[ScoreLine]:
    base = ledger.references.get(ledger.full)
    for i, aim in enumerate(ledger.aims):
        of_base = "" if base is None else shown_number(base[i])
        yield ScoreLine(aim.short, of_base, *(_score(trial, i) for trial in (start, best, last)))


def _score(trial: Trial | None, i: int) -> str:
    if trial is None:
        return ""
    if trial.values is None or trial.stderrs is None:
        return "failed"
    return shown_number(trial.values[i], trial.stderrs[i])


def _shares(trial: Trial, ledger: Ledger) -> str:
    """Return `0.412 nats lost`, or an empty text without a score to compare with the base's."""
    base = ledger.references.get(trial.samples)
    if trial.values is None or base is None:
        return ""
    rows = zip(ledger.aims, trial.values, base, strict=True)
    return ", ".join(filter(None, (beside_base_words(beside_base(*row)) for row in rows)))
