"""A search's RUN read for a report: nothing is evaluated, written or locked, nor are models needed.

The report's `missing` lists missing parts. A search that goes on meanwhile isn't disturbed.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import final

from optuna.storages import JournalStorage

from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.format import format_plan
from gptailor.lang.parse import loads
from gptailor.lang.words import range_words
from gptailor.plan.faults import TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.resolved import Resolved
from gptailor.plan.stage import at_stage
from gptailor.reporting.layer_view import layer_views, plan_summary
from gptailor.reporting.run_report import ReportedObjective, ReportedTrial, RunReport
from gptailor.reporting.summary import (
    RunRecord,
    RunSizes,
    SearchSummary,
    front_file,
)
from gptailor.searching.folder import SIZES, SPACE
from gptailor.searching.run.journal import JournalLines, journal_lines, with_beginning
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.study import Study, fits, quiet, read_study, refusal
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run_files import JOURNAL, SETTINGS, SUMMARY, WRITTEN_ANEW, RunFiles
from gptailor.searching.space.decode import decode_for
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.sqlite_study import stored_study
from gptailor.searching.verdict import held_key, scores_in

_UNENDED = (
    "The search hasn't come to its end: there is no summary, no held-out score and no verdict. The"
    " same search command goes on."
)
_NO_SPACE = (
    "RUN has no space.tailor, which is what was searched: only plans that were handed over have a"
    " text here, and what layers do isn't known. The same search command writes it, without another"
    " trial."
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
    return RunReading(run, storage, study).report()


@final
class RunReading:
    """A RUN while it is read: its record, summary and study, its trials and their space.

    `missing` collects messages about missing parts.
    """

    def __init__(
        self, run: str | Path, storage: str | None = None, study: str | None = None
    ) -> None:
        self.files = files = RunFiles(run)
        self.missing: list[str] = []
        record = files.record(RunRecord, SETTINGS)
        if record is None:
            raise files.error("holds no search", "name the RUN of a gptailor search")
        self.record = record
        self.summary = files.record(SearchSummary, f"{SUMMARY}.json")
        if self.summary is None:
            self.missing.append(_UNENDED)
        name = study or record.study
        self.study = self._journal(name) if storage is None else stored_study(storage, name)
        self.ledger = self._ledger()
        self.space = self._space()

    # --------------------------------------------------------------------------- reading from disk

    def _journal(self, name: str) -> Study:
        """Return the study in RUN's journal. Raises CheckpointError C903."""
        if self.files.storage is not None:
            lines = [*self.files.storage.journal(JOURNAL).read_logs(0)]
        elif raw := self.files.read(JOURNAL):
            lines = with_beginning(journal_lines(raw, self.files.path), self.files.path)
        elif self.record.storage is not None:
            message = f"has no {JOURNAL}: its run.json names a storage, which is not opened for it"
            help_ = "report --storage URL reads a SQLite study that you name"
            raise self.files.error(message, help_)
        else:
            help_ = "a search writes it with its first trial"
            raise self.files.error(f"has no {JOURNAL} with a line", help_)
        try:
            with quiet():
                return read_study(JournalStorage(JournalLines(lines)), name, self.files.path)
        except Exception as error:  # a stranger's journal, which Optuna replays
            raise refusal(error, lines, name, self.files.path) from error

    def _ledger(self) -> Ledger:
        objectives, prefer = self.record.objectives, self.record.prefer
        number = objectives.index(prefer) if prefer in objectives else None
        ledger = Ledger(self.record.aims, self.study.typed.full, number)
        self.study.recall(ledger)
        summary = self.summary
        if summary is not None and (
            summary.objectives != ledger.aims or summary.trials > len(ledger.trials)
        ):
            message = f"is of another search than {JOURNAL}"
            place = self.files.path / f"{SUMMARY}.json"
            raise CheckpointError("C903", message, place, WRITTEN_ANEW)
        return ledger

    def _space(self) -> Space | None:
        text = self.files.text(SPACE)
        if text is None:
            self.missing.append(_NO_SPACE)
            return None
        try:
            plan = loads(text, folder=self.files.path, name=SPACE)
            space = space_of(plan, self.record.layers, self.record.tied)
        except TailorError as error:
            self.missing.append(f"space.tailor can't be used: {error}")
            return None
        if not all(fits(space, trial.request.genome) for trial in self.ledger.trials):
            self.missing.append("space.tailor is of another search: its plans aren't shown.")
            return None
        return space

    # ---------------------------------------------------------------------------------- the report

    @cached_property
    def plans(self) -> Mapping[str, Resolved]:
        """The plans of trials, each once, by their digests; none without the space."""
        return {} if self.space is None else _plans(self.space, self.ledger)

    def report(self) -> RunReport:
        """Return the report."""
        ledger, space, plans = self.ledger, self.space, self.plans
        written = self.files.record(RunSizes, SIZES)
        sizes = _sizes(written, plans)
        line = partial(self._trial, plans, sizes)
        front = None if self.summary is None else [row.trial for row in self.summary.front]
        return RunReport(
            run=str(self.files.shown),
            record=self.record,
            objectives=self._objectives(),
            deciding=ledger.deciding,
            loss_unit=ledger.loss_unit,
            full=ledger.full,
            layers=self.record.layers,
            base=None if written is None else written.base,
            trials=[line(trial) for trial in ledger.trials],
            front=tuple(front if front is not None else [t.number for t in ledger.front()]),
            summary=self.summary,
            space=None if space is None else format_plan(space.plan),
            missing=tuple(self.missing),
        )

    def _objectives(self) -> list[ReportedObjective]:
        ledger = self.ledger
        values = ledger.references.get(ledger.full)
        base = scores_in(self.study.typed.held_out.get(held_key(None)))
        held = None if base is None else base.values
        many = (0,) * len(ledger.aims) if self.summary is None else self.summary.held
        return [
            ReportedObjective(
                aim.name, aim.short, aim.unit, aim.direction, aim.size,
                None if values is None else values[i], None if held is None else held[i], many[i],
            )
            for i, aim in enumerate(ledger.aims)
        ]  # fmt: skip

    def _trial(
        self,
        plans: Mapping[str, Resolved],
        sizes: Mapping[str, OutputSize],
        trial: Trial,
    ) -> ReportedTrial:
        request, plan, size = trial.request, plans.get(trial.plan), sizes.get(trial.plan)
        unseen = self.study.typed.held_out
        held, base = (scores_in(unseen.get(held_key(t))) for t in (trial, None))
        lost = self.ledger.loss(trial)
        apart = None
        if held is not None and base is not None:
            apart = self.ledger.loss_beside(held, base.values)
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
            layers=size.layers if size else None if plan is None else len(plan.kept),
            size=size,
            made="" if plan is None else _plan_line(plan),
            text=self._handed(trial)
            if plan is None
            else format_plan(at_stage(plan.declared, request.stage)),
            held=None if held is None else tuple(held.values),
            held_errors=None if held is None else tuple(held.stderrs),
            held_loss=None if apart is None else apart.value,
            held_loss_error=None if apart is None else apart.stderr,
        )

    def _handed(self, trial: Trial) -> str | None:
        """Return the text of a plan that the search handed over, with its comment."""
        return self.files.text(front_file(trial.number))


def _plans(space: Space, ledger: Ledger) -> dict[str, Resolved]:
    """Return the plans of trials, each once, by their digests."""
    plans: dict[str, Resolved] = {}
    for trial in ledger.trials:
        if trial.plan not in plans:
            plan = decode_for(space, trial.request.genome, trial.request.stage)
            plans[trial.plan] = Resolved(plan, space.layers)
    return plans


def _sizes(written: RunSizes | None, plans: Mapping[str, Resolved]) -> dict[str, OutputSize]:
    """Return the plans' sizes by digest: as written, or as all plans that are cut alike have it."""
    sizes = {} if written is None else dict(written.plans)
    alike: dict[Hashable, set[OutputSize]] = {}
    for digest, plan in plans.items():
        if digest in sizes:
            alike.setdefault(_cut_alike(plan), set()).add(sizes[digest])
    for digest, plan in plans.items():
        [*same] = alike.get(_cut_alike(plan), ())
        if digest not in sizes and len(same) == 1:
            sizes[digest] = same[0]
    return sizes


def _cut_alike(plan: Resolved) -> Hashable:
    """Return the number of a plan's layers with the sizes that its cuts leave."""
    return len(plan.kept), tuple((word, cut.size) for word, cut in sorted(plan.cuts.items()))


def _plan_line(resolved: Resolved) -> str:
    """Return a line on a plan: `26 layers: 24 base, 2 merged; cut: L20..L23`."""
    dropped = [drop.position for drop in resolved.plan.drops]
    return plan_summary(layer_views(resolved)) + f"; cut: {range_words(dropped)}" * bool(dropped)
