"""A search's RUN read: nothing is evaluated, written or locked, nor are models needed.

A search that goes on meanwhile isn't disturbed.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.format import format_plan
from gptailor.lang.parse import loads
from gptailor.plan.faults import TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.resolved import Resolved
from gptailor.plan.stage import at_stage
from gptailor.reporting.layer_view import made_words
from gptailor.reporting.measure import Estimate
from gptailor.searching.run.journal import JOURNAL
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import RunRecord, SearchSummary
from gptailor.searching.run.study import Study
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run_files import SETTINGS, SUMMARY, WRITTEN_ANEW, RunFiles
from gptailor.searching.space.decode import decode_for
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.verdict import held_loss


@final
class RunReading:
    """A RUN, which may be a stranger's: its record, summary and study, its trials and their space.

    Raises CheckpointError C903 for a folder without a readable search.
    """

    def __init__(self, run: str | Path) -> None:
        self.files = files = RunFiles(run)
        record = files.record(RunRecord, SETTINGS)
        if record is None:
            raise files.error("holds no search", "name the RUN of a gptailor search")
        self.record = record
        self.summary = files.record(SearchSummary, f"{SUMMARY}.json")
        lines = files.read(JOURNAL) if files.storage is None else files.storage.journal().read()
        if not lines:
            help_ = "a search writes it with its first trial"
            raise files.error(f"has no {JOURNAL} with a line", help_)
        self.study = Study(lines, files.path / JOURNAL)
        self.space = self._space()
        self.ledger = self._ledger()

    def _space(self) -> Space:
        try:
            plan = loads(self.record.space, folder=self.files.path, name="space")
            return space_of(plan, self.record.layers, self.record.tied)
        except TailorError as error:
            message = f"has an open plan that can't be used: {error}"
            raise CheckpointError("C903", message, self.files.path / SETTINGS) from None

    def _ledger(self) -> Ledger:
        objectives, prefer = self.record.objectives, self.record.prefer
        number = objectives.index(prefer) if prefer in objectives else None
        ledger = Ledger(self.record.aims, self.record.full, number)
        self.study.recall(ledger, self.space)
        summary = self.summary
        if summary is not None and (
            summary.objectives != ledger.aims or summary.trials > len(ledger.trials)
        ):
            message = f"is of another search than {JOURNAL}"
            place = self.files.path / f"{SUMMARY}.json"
            raise CheckpointError("C903", message, place, WRITTEN_ANEW)
        return ledger

    # ------------------------------------------------------------------------------------ its rows

    @cached_property
    def plans(self) -> Mapping[str, Resolved]:
        """The plans of trials, each once, by their digests."""
        return {
            trial.plan: Resolved(
                decode_for(self.space, trial.request.genome, trial.request.stage),
                self.space.layers,
            )
            for trial in self.ledger.trials
        }

    @cached_property
    def sizes(self) -> Mapping[str, OutputSize]:
        """The plans' sizes by digest: as written, or as all plans that are cut alike have it."""
        written = self.study.typed.sizes
        sizes = {} if written is None else dict(written.plans)
        alike: dict[Hashable, set[OutputSize]] = {}
        for digest, plan in self.plans.items():
            if digest in sizes:
                alike.setdefault(_cut_alike(plan), set()).add(sizes[digest])
        for digest, plan in self.plans.items():
            [*same] = alike.get(_cut_alike(plan), ())
            if digest not in sizes and len(same) == 1:
                sizes[digest] = same[0]
        return sizes

    def layers(self, trial: Trial) -> int:
        """Return the number of layers of a trial's plan."""
        size = self.sizes.get(trial.plan)
        return size.layers if size else len(self.plans[trial.plan].kept)

    @cached_property
    def front(self) -> list[int]:
        """The numbers of the trials on the front, the best by the first objective first."""
        rows = None if self.summary is None else [row.trial for row in self.summary.front]
        return [trial.number for trial in self.ledger.front()] if rows is None else rows

    def text(self, trial: Trial) -> str:
        """Return the text of a trial's plan as it was evaluated."""
        return format_plan(at_stage(self.plans[trial.plan].declared, trial.request.stage))

    def held_loss(self, trial: Trial) -> Estimate | None:
        """Return a trial's loss beside the base on held-out samples, where both have scores."""
        return held_loss(self.ledger, self.study.typed.held_out, trial)

    def made(self, trial: Trial) -> str:
        """Return a line on a trial's plan: `26 layers: 24 base, 2 merged; cut: L20..L23`."""
        return made_words(self.plans[trial.plan])

    def row(self, trial: Trial) -> dict[str, Any]:
        """Return the row of a trial, by column."""
        size, lost = self.sizes.get(trial.plan), self.ledger.loss(trial)
        row: dict[str, Any] = {
            "number": trial.number,
            "phase": trial.request.phase,
            "origin": origin_words(trial.request.origin),
            "plan": self.made(trial),
            "samples": trial.samples,
            "loss": None if lost is None else lost.value,
            "layers": self.layers(trial),
            "parameters": None if size is None else size.parameters,
            "seconds": trial.seconds,
            "failure": None if trial.failure is None else str(trial.failure),
        }
        for number, aim in enumerate(self.ledger.aims):
            row[aim.name] = trial.values and trial.values[number]
            row[f"{aim.name} stderr"] = trial.stderrs and trial.stderrs[number]
        return row


def _cut_alike(plan: Resolved) -> Hashable:
    """Return the number of a plan's layers with the sizes that its cuts leave."""
    return len(plan.kept), tuple((word, cut.size) for word, cut in sorted(plan.cuts.items()))
