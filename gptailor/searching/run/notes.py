"""The decisions in a search's journal, as typed data: `StudyNotes`, its parts, and `JournalLine`.

A journal may be a stranger's: each of its lines is strict data.
"""

from typing import Annotated, Literal, TypeAlias, final

from pydantic import Field

from gptailor.plan.output_size import Tally
from gptailor.plan.plan import BuiltClosed, Pair, Position, Several
from gptailor.searching.run.records import (
    Cost,
    HeldOutFailure,
    Line,
    NotedScores,
    RunSizes,
    Seconds,
)
from gptailor.searching.run.scores import NotedSamples
from gptailor.searching.run.trials import Trial

HELD_OUT = "held_out"
"""The note of held-out scores, so that each is made once."""
MEASURED = "measured"
"""The note of the measurements before the first trial, and of their cost.

It is one note, so that a process that ends early leaves both or neither."""
CONDITIONS = "conditions"
"""The note of required measures, so that each plan is evaluated once by each of them."""
ENDED = "ended"
"""The note that a budget was spent, and how."""
LATE = "late"
"""The note of how often the order of asking was given up, for a worker that was stuck."""
LATENCIES = "latencies"
"""The note of latencies by shape: each is measured once for all trials."""
BASES = "bases"
"""The note of the uncut base's scores by the number of samples."""
SIZES = "sizes"
"""The note of the sizes of the base and of plans that could be handed over."""
INFLUENCE, GAPS, REMOVAL = "influence", "gaps", "removal"
"""The names of the measurements before the first trial, in their note."""


@final
class HeldScoresNote(NotedScores):
    """Scores on samples that the search never saw, and each sample's part."""

    per_sample: NotedSamples = ()


HeldNote: TypeAlias = HeldScoresNote | HeldOutFailure


@final
class FoundNote(BuiltClosed):
    """The measurements before the first trial, as far as they were made."""

    influence: dict[str, Several[float]] | None = None
    gaps: Several[Several[Position]] | None = None
    removal: Several[Position] | None = None


@final
class MeasuredNote(BuiltClosed):
    """The measurements before the first trial, and their cost."""

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
    """The decisions of a search beside its trials; a later line replaces an earlier one's."""

    version: Line = ""
    held_out: dict[str, HeldNote] = Field(default_factory=dict)
    conditions: dict[str, dict[str, Pair[float | None]]] = Field(default_factory=dict)
    """A plan's values by conditions, also on held-out samples; None is a failure."""
    ended: EndedNote | None = None
    late: Tally = 0
    measured: MeasuredNote = MeasuredNote()
    latencies: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    bases: dict[int, NotedScores] = Field(default_factory=dict)
    sizes: RunSizes | None = None


@final
class JournalLine(StudyNotes):
    """A line of the journal: a trial, or a decision. The first line is the `version`."""

    trial: Trial | None = None
