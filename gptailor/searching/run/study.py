"""All trials and decisions of a search on disk: `Study`, and the lines of its journal.

A journal may be a stranger's: each of its lines is strict data, a `JournalLine`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import Field, ValidationError

import gptailor
from gptailor.checkpoint.files import CheckpointError, fault_of, quoted
from gptailor.plan.output_size import Tally
from gptailor.plan.plan import BuiltClosed, Pair, Position, Several
from gptailor.searching.run.journal import RESTORE, Journal, complete_lines, damaged
from gptailor.searching.run.records import (
    Cost,
    HandedNote,
    Line,
    ResultNote,
    RunSizes,
    Seconds,
)
from gptailor.searching.run.scores import PerObjective, Scores
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space


@final
class HeldOutFailure(BuiltClosed):
    """The reason why a plan has no score on samples that the search never saw."""

    failure: str


@final
class FoundNote(BuiltClosed):
    """The measurements before the first trial, as far as they were made.

    `influence` is the block influence of each layer, by the name of a plan without drops. `gaps`
    are the errors of a bridge over gaps of 1, 2, … layers after each layer, `removal` the positions
    that greedy removal takes.
    """

    influence: dict[str, Several[float]] | None = None
    gaps: Several[Several[float]] | None = None
    removal: Several[Position] | None = None


@final
class MeasuredNote(BuiltClosed):
    """The measurements before the first trial, and their cost.

    It is one note, so that a process that ends early leaves both or neither.
    """

    evaluations: Cost = 0.0
    seconds: Seconds = 0.0
    found: FoundNote = FoundNote()


@final
class EndedNote(BuiltClosed):
    """The budget that was spent, and why trials ended."""

    reason: Literal["budget", "exhausted"]
    trials: Tally
    final: Line | None


class StudyNotes(BuiltClosed):
    """The decisions of a search, without its trials; a later line replaces an earlier one's.

    `held_out` are held-out scores by `held_key`. `conditions` are a plan's values by required
    measures, also on held-out samples; None is a failure. `ended` tells how a budget was spent.
    `late` is how often the order of asking was given up, for a worker that was stuck. `latencies`
    are by shape, each measured once for all trials. `bases` are the uncut base's scores by the
    number of samples. `sizes` belong to the base and to plans that could be handed over. `result`
    and `handed` are written when the search ends, or is interrupted. A trial after `result` undoes
    it.
    """

    version: Line = ""
    held_out: dict[str, Scores | HeldOutFailure] = Field(default_factory=dict)
    conditions: dict[str, dict[str, Pair[float | None]]] = Field(default_factory=dict)
    ended: EndedNote | None = None
    late: Tally = 0
    measured: MeasuredNote = MeasuredNote()
    latencies: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    bases: dict[int, Scores] = Field(default_factory=dict)
    sizes: RunSizes | None = None
    result: ResultNote | None = None
    handed: HandedNote | None = None


@final
class JournalLine(StudyNotes):
    """A line of the journal: a trial, or a decision. The first line is the `version`."""

    trial: Trial | None = None


@final
class Study:
    """Told trials, in their order, and notes about the whole, from the lines of a journal.

    Messages name its `place`. Lines are written by `append`. Raises CheckpointError C903 for a
    damaged line.
    """

    def __init__(
        self, lines: bytes, place: Path, append: Callable[[bytes], None] | None = None
    ) -> None:
        self.place = place
        self.typed = StudyNotes()
        self._append = append
        self.trials: list[Trial] = []
        self._keys: set[tuple[str, int, int]] = set()
        for number, line in enumerate(complete_lines(lines).split(b"\n")[:-1], start=1):
            try:
                self._take(JournalLine.model_validate_json(line))
            except ValueError as error:
                fault = fault_of(error) if isinstance(error, ValidationError) else str(error)
                raise damaged(number, fault, place) from None

    def _take(self, line: JournalLine) -> None:
        """Take in a line. Raises ValueError for a line that doesn't follow the earlier lines."""
        if not (self.typed.version or line.version):
            raise ValueError("expected the line that begins the journal")
        told = line.model_fields_set - {"trial"}
        self.typed = self.typed.model_copy(update={name: getattr(line, name) for name in told})
        if (trial := line.trial) is None:
            return
        self.typed = self.typed.model_copy(update={"result": None})  # it goes on
        if trial.number != len(self.trials):
            raise ValueError(f"expected trial {len(self.trials)}, got trial {trial.number}")
        if trial.request.key in self._keys:
            raise ValueError("has an evaluation twice, perhaps from two searches")
        self._keys.add(trial.request.key)
        self.trials.append(trial)

    def _write(self, line: JournalLine) -> None:
        assert self._append is not None, "a study that is only read"
        self._append(line.model_dump_json(include=line.model_fields_set).encode() + b"\n")
        self._take(line)

    def error(self, message: str, help: str = RESTORE) -> CheckpointError:
        """Return an error about the study."""
        return CheckpointError("C903", message, self.place, help)

    def add(self, trial: Trial) -> None:
        """Write down the next trial. Raises C303."""
        self._write(JournalLine(trial=trial))

    def note(self, name: str, value: Any) -> None:
        """Write down a decision, unless it is the last of its name. Raises C303."""
        line = JournalLine.model_validate({name: value})
        if getattr(line, name) != getattr(self.typed, name):
            self._write(line)

    def recall(self, ledger: Ledger, space: Space) -> None:
        """Put all told trials into a ledger, and the scores that values are measured by.

        Raises CheckpointError C903 for scores that aren't by the ledger's objectives, and for a
        genome of another space.
        """
        count = len(ledger.aims)
        self._recall_bases(ledger)
        for key, held in self.typed.held_out.items():
            if isinstance(held, Scores):
                name = f"held-out scores of {quoted(key)}"
                self._refuse_unlike(name, held.values, count)
                self._refuse_infinite(name, held.per_sample)
        if (result := self.typed.result) is not None:
            self._refuse_unlike("held-out samples", result.held, count)
        for trial in self.trials:
            name = f"trial {trial.number}"
            self._refuse_unlike(name, trial.values, count)
            self._refuse_infinite(name, trial.per_sample)
            if trial.values is not None and trial.samples not in ledger.references:
                raise self.error(f"has {name} on {trial.samples} samples, but no score of the base")
            if trial.request.samples > ledger.full:
                raise self.error(f"has {name} on more samples than the search's {ledger.full}")
            if not _fits(space, trial.request.genome):
                raise self.error(f"has {name} of another space")
            ledger.add(trial)
        for number in _named(self.typed):
            if number >= len(self.trials):
                raise self.error(f"names trial {number}, but has only {len(self.trials)} trials")

    def _recall_bases(self, ledger: Ledger) -> None:
        for samples, note in self.typed.bases.items():
            self._refuse_unlike(f"the base on {samples} samples", note.values, len(ledger.aims))
            ledger.references[samples] = note.values

    def _refuse_unlike(self, name: str, values: Sequence[float] | None, count: int) -> None:
        if values is not None and len(values) != count:
            raise self.error(f"has {len(values)} scores of {name}, expected {count}")

    def _refuse_infinite(self, name: str, samples: PerObjective) -> None:
        """Refuse samples with an infinite score: it can't be compared with another."""
        for each in samples:
            if each is not None and not math.isfinite(each.score().value):
                raise self.error(f"has samples of {name} without a finite score")


def _named(notes: StudyNotes) -> list[int]:
    """Return the trials that the notes of a search's end name."""
    handed, required = notes.handed, None if notes.result is None else notes.result.required
    numbers = [] if handed is None else [handed.best, *(point.trial for point in handed.curve)]
    numbers += [] if required is None else [required.nearest, *required.met]
    return [number for number in numbers if number is not None]


def _fits(space: Space, genome: Genome) -> bool:
    """Return whether a genome has a value of the space for each gene."""
    sizes = (len(space.bits), len(space.picks), len(space.reals))
    if tuple(map(len, genome)) != sizes:
        return False
    return all(
        0 <= int(n) < len(pick.options) for n, pick in zip(genome.picks, space.picks, strict=True)
    )


def open_study(journal: Journal, *, begun: bool = False) -> Study:
    """Return the study in a journal; begin a new one.

    Raises CheckpointError: C903 for a damaged journal, for one without a line of a search that has
    `begun`, and for trials of one that hasn't; C303 for a failed write.
    """
    study = Study(journal.read(), journal.place, journal.append)
    if begun and not study.typed.version:
        raise study.error("is empty, but 'run.json' has the settings of its search")
    if study.trials and not begun:
        raise study.error("has trials, but 'run.json' with the settings of their search is missing")
    if not study.typed.version:
        study.note("version", gptailor.__version__)
    return study
