"""A search's RUN read for a report. The report's `missing` lists missing parts."""

from gptailor.lang.format import format_plan
from gptailor.plan.stage import at_stage
from gptailor.plugins.report.run_report import ReportedObjective, ReportedTrial, RunReport
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_reading import RunReading
from gptailor.searching.verdict import held_key, scores_in

_UNENDED = (
    "The search hasn't come to its end: there is no summary, no held-out score and no verdict. The"
    " same search command goes on."
)


def report_of(reading: RunReading) -> RunReport:
    """Return the report of a search."""
    ledger, written = reading.ledger, reading.study.typed.sizes
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
        space=format_plan(reading.space.plan),
        missing=(_UNENDED,) if reading.summary is None else (),
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
    request, plan = trial.request, reading.plans[trial.plan]
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
        text=format_plan(at_stage(plan.declared, request.stage)),
        held_loss=None if apart is None else apart.value,
        held_loss_error=None if apart is None else apart.stderr,
    )
