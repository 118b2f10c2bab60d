"""The notes of a study, as typed data: `StudyNotes` about the whole, `TrialNote` of each trial.

A study may be a stranger's, and other programs may write into it: a note with another name is
passed over, and a note with one of these names must be of its type.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, final

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from gptailor.plan.output_size import Tally
from gptailor.plan.plan import BuiltClosed, Pair, Position, Several
from gptailor.plan.stage import Stage
from gptailor.searching.run.origin import NotedOrigin
from gptailor.searching.run.records import Cost, Line, Seconds, TrialNumber
from gptailor.searching.run.scores import PerObjective, per_sample_from_json

HELD_OUT = "held out"
"""The study's note of held-out scores, so that each is made once."""
MEASURED = "measured"
"""The study's note of the measurements before its first trial, and of their cost.

It is one note, so that a process that ends early leaves both or neither."""
CONDITIONS = "conditions"
"""The study's note of required measures, so that each plan is evaluated once by each of them."""
ENDED = "ended"
"""The study's note that a budget was spent, and how."""
LATE = "late"
"""The study's note of how often the order of asking was given up, for a worker that was stuck."""
LATENCIES = "latencies"
"""The study's note of latencies by shape: each is measured once for all trials."""
INFLUENCE, GAPS, REMOVAL = "block influence", "bridged cuts", "greedy removal"
"""The names of the measurements before the first trial, in their note."""
BASE_SCORES = "base"
"""The prefix of notes of the uncut base's scores, before the number of samples."""


class Noted(BuiltClosed):
    """A note: strict data that ignores unknown names."""

    model_config = ConfigDict(extra="ignore")


NotedSamples = Annotated[PerObjective, PlainValidator(per_sample_from_json)]


class _NotedScores(Noted):
    """Scores by each objective; an error of None is infinite."""

    values: Several[float]
    stderrs: Several[Annotated[float, Field(ge=0)] | None]

    @model_validator(mode="after")
    def _agrees(self) -> "_NotedScores":
        if len(self.values) != len(self.stderrs):
            raise ValueError("expected an error of each score")
        return self


@final
class BaseNote(_NotedScores):
    """The uncut base's scores."""


@final
class HeldScoresNote(_NotedScores):
    """Scores on samples that the search never saw, and each sample's part."""

    per_sample: NotedSamples = ()

    @property
    def each(self) -> PerObjective:
        """The samples' sums and counts."""
        return self.per_sample


@final
class HeldFailureNote(Noted):
    """The reason why a plan has no score on samples that the search never saw."""

    failure: str


HeldNote: TypeAlias = HeldScoresNote | HeldFailureNote


@final
class FoundNote(Noted):
    """The measurements before the first trial, as far as they were made."""

    influence: dict[str, Several[float]] | None = Field(None, alias="block influence")
    gaps: Several[Several[Position]] | None = Field(None, alias="bridged cuts")
    removal: Several[Position] | None = Field(None, alias="greedy removal")


@final
class MeasuredNote(Noted):
    """The measurements before the first trial, and their cost."""

    evaluations: Cost = 0.0
    seconds: Seconds = 0.0
    found: FoundNote = Field(default_factory=lambda: FoundNote.model_validate({}))


@final
class EndedNote(Noted):
    """The budget that was spent, and why trials ended."""

    reason: Literal["budget", "exhausted"]
    trials: Tally
    final: Line | None


ConditionPair = Pair[float | None]
"""A plan's value by a condition, also on held-out samples; None is a failure."""


@final
class StudyNotes(Noted):
    """All notes of a study that have a meaning."""

    samples: Annotated[str, Field(pattern=r"^[0-9]{1,9}\.\.[0-9]{1,9}$")] | None = None
    held_out: dict[str, HeldNote] = Field(default_factory=dict, alias="held out")
    conditions: dict[str, dict[str, ConditionPair]] = Field(default_factory=dict)
    ended: EndedNote | None = None
    late: Tally = 0
    measured: MeasuredNote = Field(default_factory=lambda: MeasuredNote.model_validate({}))
    latencies: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    bases: dict[int, BaseNote] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, notes: Any) -> Any:
        """Gather the base's scores; older studies have a note for each measurement."""
        if not isinstance(notes, Mapping):
            return notes
        old = {name: notes[name] for name in (INFLUENCE, GAPS, REMOVAL) if name in notes}
        measured = notes.get(MEASURED, {})
        if old and isinstance(measured, dict) and isinstance(measured.get("found", {}), dict):
            measured = {**measured, "found": {**old, **measured.get("found", {})}}
        bases = {}
        for name, note in notes.items():
            kind, _, count = name.partition(" ")
            if kind == BASE_SCORES and count.isdecimal() and count.isascii() and len(count) < 10:
                bases[int(count)] = note
        return {**notes, MEASURED: measured, "bases": bases}

    @property
    def full(self) -> int:
        """The number of samples of a full trial; 1 where it isn't noted."""
        return 1 if self.samples is None else int(self.samples.rpartition("..")[2])


_Small = Annotated[int, Field(ge=0, le=10**6)]


@final
class GenomeNote(Noted):
    """A genome: bits as `0` and `1`, the numbers of options, and reals in 0..1."""

    bits: Annotated[str, Field(pattern="^[01]*$")]
    picks: Several[_Small]
    reals: Several[Annotated[float, Field(ge=0, le=1)]]


@final
class TrialNote(Noted):
    """The notes of a study on a trial; see `TrialRequest` and `Trial`."""

    phase: Literal["recipe", "start", "random", "search", "final"]
    ask: _Small
    slot: _Small
    origin: NotedOrigin
    asked_after: TrialNumber
    samples: Annotated[int, Field(ge=1, le=10**9)]
    share: Annotated[float, Field(gt=0, le=1)]
    stage: Stage
    plan: Line
    genome: GenomeNote
    seconds: Seconds
    values: Several[float] | None = None
    stderrs: Several[Annotated[float, Field(ge=0)] | None] | None = None
    per_sample: NotedSamples = ()
    failure: str | None = None
    same_as: TrialNumber | None = None
    stopped: Annotated[int, Field(ge=1, le=10**9)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _staged(cls, note: Any) -> Any:
        """Read the `bridged` of a trial in older studies as its stage."""
        if isinstance(note, Mapping) and "stage" not in note and type(note.get("bridged")) is bool:
            return {**note, "stage": "bridged" if note["bridged"] else "bare"}
        return note

    @model_validator(mode="after")
    def _agrees(self) -> "TrialNote":
        if (self.values is None) != (self.stderrs is None):
            raise ValueError("expected scores with errors, or neither")
        if self.values is not None and self.stderrs is not None:
            if len(self.values) != len(self.stderrs):
                raise ValueError("expected an error of each score")
            if len(self.per_sample) not in (0, len(self.values)):
                raise ValueError("expected samples of each score")
        if self.stopped is not None and self.stopped > self.samples:
            raise ValueError("expected to be given up after fewer samples")
        return self
