"""What a report shows of a search: its objectives and trials, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from gptailor.plan.output_size import OutputSize
from gptailor.report.summary import BlockScan, RunRecord, SearchSummary

LayerState = Literal["dropped", "kept", "changed"]
"""What became of a layer of the base: it leaves, it is the base's own, or something else."""


@final
@dataclass(frozen=True)
class ReportedObjective:
    """An objective, and the uncut base's scores by it; `label` tells it from the others.

    A `size` says nothing of how good a plan is. `held` is how many samples the search never saw.
    """

    name: str
    label: str
    unit: str
    direction: str
    size: bool
    base: float | None = None
    base_held: float | None = None
    held: int = 0

    @property
    def title(self) -> str:
        """`nll, nats`; `parameters`, which says its unit itself."""
        return f"{self.label}, {self.unit}" if self.unit not in ("", self.label) else self.label


@final
@dataclass(frozen=True)
class ReportedTrial:
    """A trial. `share` is that of all samples that its values are of.

    `loss` is what it loses beside the base, by what plans are compared by and in the report's
    `loss_unit`, and `held_loss` that on samples that the search never saw. `layers` and `size` are
    None where they are unknown. `made` is a line on what its plan is, `text` the whole. `same_as`
    is the trial whose plan it was too: then nothing was evaluated.
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
    layers: int | None
    size: OutputSize | None
    made: str
    text: str | None
    held: tuple[float, ...] | None
    held_errors: tuple[float, ...] | None
    held_loss: float | None = None
    held_loss_error: float | None = None

    @property
    def full(self) -> bool:
        """Whether it was evaluated, on all samples, and has a score."""
        return self.share == 1.0 and self.values is not None and self.same_as is None

    @property
    def name(self) -> str:
        """`trial 12`."""
        return f"trial {self.number}"


@final
@dataclass(frozen=True)
class LayerEffect:
    """How much more is lost in the mean where a layer is in a state than where it isn't.

    `error` is None where there are too few on a side to say; `count` are those with it, `others`
    those without.
    """

    layer: int
    state: LayerState
    mean: float
    error: float | None
    count: int
    others: int


@final
@dataclass(frozen=True)
class WindowLoss:
    """What plans without a window of layers lose: the mean of so many of them, and the least."""

    first: int
    last: int
    mean: float
    least: float
    count: int


@final
@dataclass(frozen=True)
class RunReport:
    """A search as it is on disk. `missing` are sentences on what isn't there, and why.

    `judging` are the numbers of the objectives that plans are compared by, `full` how many samples
    there are, `loss_unit` what losses are counted in. `front` are numbers of trials, the best by
    the first objective first; `summary` is what the search itself said in the end, if it came so
    far. `effects` are those of layers from the trials themselves, `learned` from the surrogate, in
    deviations of what it learns.
    """

    run: str
    record: RunRecord
    objectives: Sequence[ReportedObjective]
    judging: tuple[int, ...]
    loss_unit: str
    full: int
    layers: int
    base: OutputSize | None
    trials: Sequence[ReportedTrial]
    front: tuple[int, ...]
    summary: SearchSummary | None
    space: str | None
    blocks: BlockScan | None = None
    windows: Sequence[WindowLoss] = ()
    effects: Sequence[LayerEffect] = ()
    learned: Sequence[LayerEffect] = ()
    missing: Sequence[str] = ()
