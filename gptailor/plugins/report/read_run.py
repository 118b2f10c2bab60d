"""A search's RUN read for a report. The report's `missing` lists missing parts."""

from functools import partial
from pathlib import Path

from gptailor.lang.format import format_plan
from gptailor.plan.stage import at_stage
from gptailor.plugins.report.run_report import ReportedObjective, ReportedTrial, RunReport
from gptailor.plugins.report.sqlite_study import stored_study
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import front_file
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_reading import RunReading
from gptailor.searching.verdict import held_key, scores_in

_UNENDED = (
    "The search hasn't come to its end: there is no summary, no held-out score and no verdict. The"
    " same search command goes on."
)


def run_report(
    run: str | Path, *, storage: str | None = None, study: str | None = None
) -> RunReport:
    """Return the report of a search's folder or URL.

    RUN may be a stranger's: its own journal is read, never the storage that its `run.json` names. A
    study in a database is read from the SQLite `storage` that the caller names, which is opened to
    read only; `study` is its name there. Raises CheckpointError C903 for a folder without a
    readable search.
    """
    return report_of(run_reading(run, storage, study))


def run_reading(run: str | Path, storage: str | None, study: str | None) -> RunReading:
    """Return the reading of a search, with its study in RUN's journal or in the `storage`."""
    return RunReading(run, study, None if storage is None else partial(stored_study, storage))


def report_of(reading: RunReading) -> RunReport:
    """Return the report of a search."""
    ledger, space, written = reading.ledger, reading.space, reading.written_sizes
    front = None if reading.summary is None else [row.trial for row in reading.summary.front]
    return RunReport(
        run=str(reading.files.shown),
        record=reading.record,
        objectives=_objectives(reading),
        deciding=ledger.deciding,
        loss_unit=ledger.loss_unit,
        full=ledger.full,
        layers=reading.record.layers,
        base=None if written is None else written.base,
        trials=[_trial(reading, trial) for trial in ledger.trials],
        front=tuple(front if front is not None else [t.number for t in ledger.front()]),
        summary=reading.summary,
        space=None if space is None else format_plan(space.plan),
        missing=(*[_UNENDED] * (reading.summary is None), *reading.missing),
    )


def _objectives(reading: RunReading) -> list[ReportedObjective]:
    ledger = reading.ledger
    values = ledger.references.get(ledger.full)
    return [
        ReportedObjective(
            aim.name, aim.short, aim.unit, aim.direction, aim.size,
            None if values is None else values[i],
        )
        for i, aim in enumerate(ledger.aims)
    ]  # fmt: skip


def _trial(reading: RunReading, trial: Trial) -> ReportedTrial:
    request, plan = trial.request, reading.plans.get(trial.plan)
    unseen = reading.study.typed.held_out
    held, base = (scores_in(unseen.get(held_key(t))) for t in (trial, None))
    lost = reading.ledger.loss(trial)
    apart = None
    if held is not None and base is not None:
        apart = reading.ledger.loss_beside(held, base.values)
    return ReportedTrial(
        number=trial.number,
        phase=request.phase,
        origin=origin_words(request.origin),
        stage=request.stage,
        share=trial.share,
        samples=trial.samples,
        stopped=trial.stopped is not None,
        same_as=trial.same_as,
        values=trial.values,
        stderrs=trial.stderrs,
        failure=None if trial.failure is None else str(trial.failure),
        seconds=trial.seconds,
        loss=None if lost is None else lost.value,
        loss_error=None if lost is None else lost.stderr,
        layers=reading.layers(trial),
        size=reading.sizes.get(trial.plan),
        made=reading.made(trial),
        text=reading.files.text(front_file(trial.number))  # handed over, with its comment
        if plan is None
        else format_plan(at_stage(plan.declared, request.stage)),
        held_loss=None if apart is None else apart.value,
        held_loss_error=None if apart is None else apart.stderr,
    )
