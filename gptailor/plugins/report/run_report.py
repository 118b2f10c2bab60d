"""The data of a search's report: its objectives, its trials and their results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gptailor.plan.output_size import OutputSize
from gptailor.searching.run.records import RunRecord, SearchSummary


@final
@dataclass(frozen=True)
class ReportedObjective:
    """An objective, and the uncut base's score by it; `label` is its short name.

    A `size` doesn't measure a plan's quality.
    """

    name: str
    label: str
    unit: str
    direction: str
    size: bool
    base: float | None = None

    @property
    def title(self) -> str:
        """`nll, nats`, or `parameters` if the label is the unit."""
        return f"{self.label}, {self.unit}" if self.unit not in ("", self.label) else self.label


@final
@dataclass(frozen=True)
class ReportedTrial:
    """A trial. `share` is the share of all samples that its values are from.

    `loss` is the loss beside the base in the report's `loss_unit`, by the objectives that compare
    plans. `held_loss` is the loss on samples that the search never saw. `size` is None if
    it is unknown. `made` describes the plan in a line; `text` is the plan's text.
    `same_as` is an earlier trial with the same plan; such a trial evaluated nothing.
    """

    number: int
    phase: str
    origin: str
    stage: str
    share: float
    samples: int
    stopped: bool
    same_as: int | None
    values: tuple[float, ...] | None
    stderrs: tuple[float, ...] | None
    failure: str | None
    seconds: float
    loss: float | None
    loss_error: float | None
    layers: int
    size: OutputSize | None
    made: str
    text: str
    held_loss: float | None = None
    held_loss_error: float | None = None

    @property
    def full(self) -> bool:
        """Return whether the trial was evaluated on all samples and has a score."""
        return self.share == 1.0 and self.values is not None and self.same_as is None

    @property
    def name(self) -> str:
        """`trial 12`."""
        return f"trial {self.number}"


@final
@dataclass(frozen=True)
class RunReport:
    """A search on disk. `missing` has sentences on missing parts, with the reasons.

    `deciding` has the numbers of the objectives that compare plans. `full` is the number of
    samples, `loss_unit` the unit of losses. `front` has numbers of trials, the best by the first
    objective first. `summary` is the search's own summary, if it ended.
    """

    run: str
    record: RunRecord
    objectives: Sequence[ReportedObjective]
    deciding: tuple[int, ...]
    loss_unit: str
    full: int
    layers: int
    base: OutputSize | None
    trials: Sequence[ReportedTrial]
    front: tuple[int, ...]
    summary: SearchSummary | None
    space: str
    missing: Sequence[str] = ()
