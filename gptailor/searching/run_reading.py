"""A search's RUN as one view, `RunReading`: of `run.json` and the journal, and of nothing else.

Nothing is evaluated, written or locked, nor are models needed. A search that goes on meanwhile
isn't disturbed.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.format import format_plan
from gptailor.lang.parse import loads
from gptailor.plan.faults import TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.stage import at_stage
from gptailor.reporting.layer_view import made_words
from gptailor.reporting.measure import Estimate
from gptailor.searching.run.journal import JOURNAL
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import CurvePoint, ResultNote, RunRecord
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.study import Study, StudyNotes
from gptailor.searching.run.trials import FINAL, RECIPES, Ledger, Trial
from gptailor.searching.run_files import SETTINGS, RunFiles
from gptailor.searching.space.decode import decode, decode_for
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.starts.recipes import has_recipe
from gptailor.searching.summary import Verdict, best_starts, held_key, verdict


@final
@dataclass(frozen=True, eq=False)
class RunReading:
    """A search's record, study, space and trials, and all that follows from them.

    `shown` is its folder or URL.
    """

    shown: Path | str
    record: RunRecord
    study: Study
    space: Space
    ledger: Ledger

    @property
    def notes(self) -> StudyNotes:
        """The decisions of the search, without its trials."""
        return self.study.typed

    @property
    def end(self) -> ResultNote:
        """The facts of the end of a search that ended or was interrupted."""
        assert self.notes.result is not None, "a search that is under way"
        return self.notes.result

    # ------------------------------------------------------------------------------------ its plans

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
        written = self.notes.sizes
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

    def size(self, trial: Trial | None) -> OutputSize:
        """Return the written size of a plan that may be handed over, or of the uncut base."""
        written = self.notes.sizes
        if written is None or not (trial is None or trial.plan in written.plans):
            raise self.study.error("has a plan without a size")
        return written.base if trial is None else written.plans[trial.plan]

    def layers(self, trial: Trial) -> int:
        """Return the number of layers of a trial's plan."""
        size = self.sizes.get(trial.plan)
        return size.layers if size else len(self.plans[trial.plan].kept)

    def scored(self, trial: Trial) -> Plan:
        """Return a trial's plan as it was evaluated."""
        return at_stage(self.plans[trial.plan].declared, trial.request.stage)

    def text(self, trial: Trial) -> str:
        """Return the text of a trial's plan as it was evaluated."""
        return format_plan(self.scored(trial))

    def handed(self, trial: Trial) -> Plan:
        """Return a trial's plan as RUN has it: as it was evaluated.

        A search that was interrupted before it repaired plans hands them over with their repairs.
        """
        early = self.end.ended == "interrupted" and not self.ledger.of(FINAL)
        return self.plans[trial.plan].declared if early else self.scored(trial)

    def unrepaired(self, trial: Trial) -> bool:
        """Return whether a trial's plan is handed over with repairs that its scores lack."""
        return self.handed(trial) != self.scored(trial)

    def made(self, trial: Trial) -> str:
        """Return a line on a trial's plan: `26 layers: 24 base, 2 merged; cut: L20..L23`."""
        return made_words(self.plans[trial.plan])

    # ----------------------------------------------------------------------------------- its result

    @cached_property
    def front(self) -> list[Trial]:
        """The trials on the front, the best by the first objective first."""
        return self.ledger.front()

    @property
    def starts(self) -> list[Trial]:
        """The best starting plans, repaired ones first."""
        return best_starts(self.ledger)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The best plan of each size that was handed over, smallest first."""
        return () if self.notes.handed is None else self.notes.handed.curve

    def held_scores(self, trial: Trial | None) -> Scores | None:
        """Return the scores of a trial, or of the base, on held-out samples; None without any."""
        held = self.notes.held_out.get(held_key(trial))
        return held if isinstance(held, Scores) else None

    def held_loss(self, trial: Trial) -> Estimate | None:
        """Return a trial's held-out loss compared with the base, where both have scores."""
        own, base = self.held_scores(trial), self.held_scores(None)
        return None if own is None or base is None else self.ledger.loss_beside(own, base.values)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict on the best trial, by held-out samples where all plans have them.

        The verdict is missing if all plans were evaluated and no plan meets the requirements.
        """
        ledger, required = self.ledger, self.end.required
        if required is not None and required.whole and not required.met:
            return None
        best, unseen = ledger.best(), self.held_scores(None)
        held = unseen is not None and best is not None and self.held_scores(best) is not None
        uncut = unseen.values if held and unseen else ledger.references.get(ledger.full)
        texts = [aim.text or number for number, aim in enumerate(ledger.aims)]
        return verdict(
            ledger,
            ledger.comparison(uncut, samples=texts),
            self.held_scores if held else lambda trial: None if trial is None else trial.scores,
            lambda trial: decode(self.space, trial.request.genome),
            lambda trial: self.size(trial).parameters,
            self.size(None).parameters,
            held=held,
            uncut=self._uncut_scores,
        )

    def _uncut_scores(self, trial: Trial) -> Scores | None:
        """Return the scores of a trial's recipe with nothing dropped, on all samples, if known."""
        recipes = (other for other in self.ledger.of(RECIPES) if other.full)
        genome, space = trial.request.genome, self.space
        best = self.ledger.best([r for r in recipes if has_recipe(space, genome, r.request.genome)])
        return None if best is None else best.scores

    # ------------------------------------------------------------------------------------ its rows

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


def read_run(run: str | Path) -> RunReading:
    """Read a RUN, which may be a stranger's.

    Raises CheckpointError C903 for a folder without a readable search.
    """
    files = RunFiles(run)
    record = files.record()
    if record is None:
        raise files.error("is not the folder of a search", "name the folder of a gptailor search")
    lines = files.journal()
    if not lines:
        raise files.error(
            f"has no trials in {JOURNAL} yet", "wait for the first trial of the search"
        )
    study = Study(lines, files.path / JOURNAL)
    try:
        plan = loads(record.space, folder=files.path, name="space")
        space = space_of(plan, record.layers, record.tied)
    except TailorError as error:
        message = f"has an open plan that can't be used: {error}"
        raise CheckpointError("C903", message, files.path / SETTINGS) from None
    objectives, prefer = record.objectives, record.prefer
    number = objectives.index(prefer) if prefer in objectives else None
    ledger = Ledger(record.aims, record.full, number)
    study.recall(ledger, space)
    result = study.typed.result
    if result is not None and result.required is not None:
        ledger.met = {*result.required.met} or None
    return RunReading(files.shown, record, study, space, ledger)


def _cut_alike(plan: Resolved) -> Hashable:
    """Return the number of a plan's layers with the sizes that its cuts leave."""
    return len(plan.kept), tuple((word, cut.size) for word, cut in sorted(plan.plan.cuts.items()))
