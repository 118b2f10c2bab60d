"""A search's RUN read: nothing is evaluated, written or locked, nor are models needed.

A search that goes on meanwhile isn't disturbed.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

from optuna.storages import JournalStorage

from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.parse import loads
from gptailor.lang.words import range_words
from gptailor.plan.faults import TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.resolved import Resolved
from gptailor.reporting.layer_view import layer_views, plan_summary
from gptailor.searching.folder import SIZES, SPACE
from gptailor.searching.run.journal import JournalLines, journal_lines, with_beginning
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import RunRecord, RunSizes, SearchSummary
from gptailor.searching.run.study import Study, fits, quiet, read_study, refusal
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run_files import JOURNAL, SETTINGS, SUMMARY, WRITTEN_ANEW, RunFiles
from gptailor.searching.space.decode import decode_for
from gptailor.searching.space.space import Space, space_of

_NO_SPACE = (
    "RUN has no space.tailor, which is what was searched: only plans that were handed over have a"
    " text here, and what layers do isn't known. The same search command writes it, without another"
    " trial."
)


@final
class RunReading:
    """A RUN, which may be a stranger's: its record, summary and study, its trials and their space.

    Its own journal is read, never the storage that its `run.json` names, unless `stored` returns
    the study of a name, by default the search's. `missing` has messages about a missing space.
    Raises CheckpointError C903 for a folder without a readable search.
    """

    def __init__(
        self,
        run: str | Path,
        study: str | None = None,
        stored: Callable[[str], Study] | None = None,
    ) -> None:
        self.files = files = RunFiles(run)
        self.missing: list[str] = []
        record = files.record(RunRecord, SETTINGS)
        if record is None:
            raise files.error("holds no search", "name the RUN of a gptailor search")
        self.record = record
        self.summary = files.record(SearchSummary, f"{SUMMARY}.json")
        self.study = (stored or self._journal)(study or record.study)
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

    # ------------------------------------------------------------------------------------ its rows

    @cached_property
    def plans(self) -> Mapping[str, Resolved]:
        """The plans of trials, each once, by their digests; none without the space."""
        return {} if self.space is None else _plans(self.space, self.ledger)

    @cached_property
    def written_sizes(self) -> RunSizes | None:
        """The sizes of plans that the search wrote down."""
        return self.files.record(RunSizes, SIZES)

    @cached_property
    def sizes(self) -> Mapping[str, OutputSize]:
        """The sizes of plans, by their digests."""
        return _sizes(self.written_sizes, self.plans)

    def layers(self, trial: Trial) -> int | None:
        """Return the number of layers of a trial's plan, if it is known."""
        size, plan = self.sizes.get(trial.plan), self.plans.get(trial.plan)
        return size.layers if size else None if plan is None else len(plan.kept)

    def made(self, trial: Trial) -> str:
        """Return a line on a trial's plan: `26 layers: 24 base, 2 merged; cut: L20..L23`."""
        resolved = self.plans.get(trial.plan)
        if resolved is None:
            return ""
        dropped = [drop.position for drop in resolved.plan.drops]
        cut = f"; cut: {range_words(dropped)}" * bool(dropped)
        return plan_summary(layer_views(resolved)) + cut

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
