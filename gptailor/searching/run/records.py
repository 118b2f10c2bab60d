"""A search's result as data: `SearchSummary`, which `search` writes and other modules read.

The module also has a search's settings (`RunRecord`) and its plans' sizes (`RunSizes`).
"""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, TypeAlias, final

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from gptailor.plan.output_size import MOST, LayerCount, OutputSize, Tally
from gptailor.plan.plan import BuiltClosed, Several
from gptailor.plan.stage import Stage
from gptailor.reporting.measure import AimDirection, ScaleBy
from gptailor.reporting.terminal_encoding import escaped_control

Seconds = Annotated[float, Field(ge=0, le=MOST)]
Cost = Annotated[float, Field(ge=0, le=MOST)]
"""Evaluations at full fidelity."""
TrialNumber = Annotated[int, Field(ge=0, le=10**9)]


def _in_a_line(text: str) -> str:
    if escaped_control(text) != text:
        raise ValueError("expected text of one line, got a control character")
    return text


Line = Annotated[str, AfterValidator(_in_a_line)]
"""Text of one line that is safe on a terminal."""


BridgedTrials = Literal["each", "from-full", "finalists"]
"""The trials that are bridged: all, the trials at full fidelity, or the best in the end."""


@final
class Aim(NamedTuple):
    """An objective: its name, its direction, and the measure of its scores.

    `label` is a short name for a line. `unit` is the scores' unit. A `size` costs no evaluation and
    doesn't measure a plan's quality.
    """

    name: Line
    direction: AimDirection
    scale: ScaleBy
    label: Line = ""
    unit: Line = ""
    size: bool = False

    @property
    def short(self) -> str:
        """Return the name for a line."""
        return self.label or self.name


WrittenAim = Annotated[Aim, PlainSerializer(lambda aim: aim._asdict())]
"""An objective that JSON has as an object."""


WrittenSize = Annotated[OutputSize, PlainSerializer(lambda size: size._asdict())]


# -------------------------------------------------------------------------------- what it was begun


class AskedSettings(BuiltClosed):
    """The settings of a search; in `run.json` and in the summary."""

    version: Line
    plan: Line
    fidelity: Line | None
    seed: Annotated[int, Field(ge=0, le=10**100)]
    strategy: Line
    bridge: BridgedTrials | None
    prefer: Line | None
    heals: bool
    finalists: Tally | None
    race: bool
    requires: Several[Line]
    packages: Several[Line]
    device: Line
    dtype: Literal["float32", "float16", "bfloat16"] | None
    layers: LayerCount
    tied: Several[Line]


@final
class SearchDigests(BuiltClosed):
    """The digests of a search's space, and of its models and texts by their names."""

    space: Line
    models: dict[str, Line]
    data: dict[str, Line]


@final
class RunRecord(AskedSettings):
    """The settings and the inputs of a search, in `run.json`.

    `trials` is the budget. `objectives` are the objectives in words, `aims` their measures. A trial
    uses between `low` and `full` samples. `limits` are the requirements of sizes. `space` is the
    open plan that is searched, without its `search` block. `starts` is the version of the rules
    that choose starting plans.
    """

    objectives: Annotated[Several[Line], Field(min_length=1)]
    trials: Annotated[int, Field(ge=1, le=MOST)]
    aims: Annotated[Several[WrittenAim], Field(min_length=1)]
    low: Annotated[int, Field(ge=1, le=MOST)]
    full: Annotated[int, Field(ge=1, le=MOST)]
    limits: Several[Line]
    space: str
    digests: SearchDigests
    starts: Tally

    @model_validator(mode="after")
    def _agrees(self) -> "RunRecord":
        if len(self.aims) != len(self.objectives):
            raise ValueError("expected as many aims as objectives")
        return self


@final
class RunSizes(BuiltClosed):
    """The sizes of the uncut base and of a search's plans, by the plans' digests."""

    base: WrittenSize
    plans: dict[str, WrittenSize]


# ------------------------------------------------------------------------------------------- scores


class NotedScores(BuiltClosed):
    """Scores by each objective, also on samples that the search never saw; None is unknown."""

    values: Several[float]
    stderrs: Several[Annotated[float, Field(ge=0)] | None]

    @model_validator(mode="after")
    def _agrees(self) -> "NotedScores":
        if len(self.values) != len(self.stderrs):
            raise ValueError("expected an error of each score")
        return self


@final
class HeldOutFailure(BuiltClosed):
    """The reason why a plan has no score on samples that the search never saw."""

    failure: str


HeldOutResult: TypeAlias = NotedScores | HeldOutFailure


class WithScores(BuiltClosed):
    """The scores of a plan by each objective, or None; of the uncut base in a summary."""

    values: Several[float] | None
    held: HeldOutResult | None
    stderrs: Several[float | None] | None = Field(default=None, exclude=True)

    @property
    def held_scores(self) -> NotedScores | None:
        """The held-out scores, or None."""
        return self.held if isinstance(self.held, NotedScores) else None

    def widths(self) -> Iterator[int]:
        """Yield how many objectives each list of scores has."""
        held = None if self.held_scores is None else self.held_scores.values
        before = getattr(self, "before", None)
        yield from (len(s) for s in (self.values, self.stderrs, held, before) if s is not None)


class SummaryRow(WithScores):
    """A trial in a summary. `before` has the plan's scores before it was repaired.

    `cut` are the layers that the plan drops, and the open sizes of its cuts: `L3..L5 dropped, width
    1280`. `recipe` is the recipe of a starting plan: `math 0.6`.

    `lost` and `held_lost` are the mean loss beside the base over the deciding objectives, on the
    search's samples and on held-out samples; an error of None is infinite.
    """

    trial: TrialNumber
    origin: Line
    samples: Tally
    seconds: Seconds
    stage: Stage
    before: Several[float | None] | None
    failure: str | None
    stderrs: Several[float | None] | None
    lost: float | None
    lost_stderr: Annotated[float, Field(ge=0)] | None
    held_lost: float | None
    held_lost_stderr: Annotated[float, Field(ge=0)] | None
    cut: Line
    recipe: Line


def front_file(trial: int) -> str:
    """Return the file of a trial's plan, as a path below RUN."""
    return f"front/trial-{trial:04}.tailor"


@final
class SizeRow(SummaryRow):
    """The best plan of one size: a point on the curve of quality over size.

    `file` is for people and programs; gptailor reads the `front_file` of the trial.
    `share` and `nats` are the mean loss over the objectives, as a share of the base's scores and in
    their unit; None if there is no such mean.
    """

    parameters: Tally
    bytes: Tally
    kv_cache: Tally | None
    layers: LayerCount
    file: Line
    share: float | None
    nats: float | None
    lost: float


# ------------------------------------------------------------------------------------------ verdict


class GainRecord(BuiltClosed):
    """The gain of a plan over another, and its standard error; None is infinite."""

    gain: float
    stderr: Annotated[float, Field(ge=0)] | None


@final
class RivalRecord(GainRecord):
    """The gain over a starting plan."""

    origin: Line
    trial: TrialNumber


@final
class BaseRecord(GainRecord):
    """The gain over the uncut base, and whether the base is no larger."""

    better: bool
    no_larger: bool


@final
class VerdictRecord(BuiltClosed):
    """The worth of a search's result; see `searching/verdict.py`.

    `against` is the starting plan with the smallest gain over it, of `starts` starting plans. It
    may be the found plan itself. Gains are in the summary's `loss_unit`, by its `deciding`
    objectives.
    """

    better: bool
    worse: bool
    against: RivalRecord | None
    starts: Tally
    held: bool
    base: BaseRecord | None


# ------------------------------------------------------------------------------- what else it found


@final
class RandomDraws(BuiltClosed):
    """Random plans for comparison.

    `expected` is the expected best score of a random search that costs as much as the search.
    """

    trials: Tally
    best: SummaryRow | None
    expected: float | None


@final
class RepairWorth(BuiltClosed):
    """How the finalists' losses before they were repaired compare with those after it.

    `slope` is the loss after repair for a loss of 1 before it, by least squares over so many
    `plans`. `correlation` is their rank correlation (Spearman).
    """

    slope: float
    correlation: Annotated[float, Field(ge=-1, le=1)]
    plans: Annotated[int, Field(ge=3)]


@final
class MeasuredCosts(BuiltClosed):
    """The cost of measuring beside the trials and on the `base`, in evaluations on all samples."""

    evaluations: Cost
    seconds: Seconds
    base: Cost


@final
class NumberAtBound(BuiltClosed):
    """A number of the best plan that is an end of its interval."""

    name: Line
    value: float
    bound: Literal["low", "high"]


@final
class RequiredRow(BuiltClosed):
    """A requirement, its bounds, and the values of a plan; `held` is on held-out samples."""

    require: Line
    bound: float | None
    value: float | None
    held: float | None
    held_bound: float | None


@final
class RequiredRecord(BuiltClosed):
    """The requirements of a search, and the plans that met them.

    `evaluated` plans were compared with the requirements, all of them if `whole`; `met` plans met
    them. `nearest` is the file of the plan with the smallest excess, if no plan meets them.
    """

    evaluated: Tally
    whole: bool
    met: Tally
    nearest: Line | None
    rows: Several[RequiredRow]


Ended = Literal["budget", "exhausted", "interrupted"]
"""The reason why trials ended; `exhausted`: the strategy finds nothing new any more."""


@final
class SearchSummary(AskedSettings):
    """A search's result. Programs read `summary.json`, people the words of `search_text.py`.

    `trials` is the number of trials, `cost` their cost. `samples` counts the samples of a whole
    trial, `held` the held-out samples of each objective. `deciding` has the numbers of the
    objectives that compare plans; `loss_unit` is the unit of losses. `found` has the best score;
    `best` is the plan that is handed over. `recipe` is the best of `recipes` that were compared
    with nothing dropped, where cuts are repaired. `sizes` is the curve of quality over size, the
    smallest plan first. `commands` score and compile the best plan; they are for people and
    programs that run where the search ran, and gptailor never reads them back.
    """

    objectives: Annotated[Several[WrittenAim], Field(min_length=1)]
    trials: TrialNumber
    ended: Ended
    samples: Tally
    held: Several[Tally]
    late: Tally
    measured: MeasuredCosts
    required: RequiredRecord | None
    left_out: Several[Line]
    beyond: Several[Line]
    at_bounds: Several[NumberAtBound]
    commands: Several[str]
    deciding: Annotated[Several[Tally], Field(min_length=1)]
    loss_unit: Line
    cost: Cost
    hits: Tally
    stopped: Tally
    spared: float
    failed: Tally
    seconds: Seconds
    base: WithScores
    verdict: VerdictRecord | None
    found: SummaryRow | None
    best: SummaryRow | None
    front: Several[SummaryRow]
    sizes: Several[SizeRow]
    starts: Several[SummaryRow]
    recipe: SummaryRow | None
    recipes: Tally
    final: Several[SummaryRow]
    repair: RepairWorth | None
    random: RandomDraws

    @property
    def rows(self) -> list[SummaryRow]:
        """All trials in the summary; a trial may occur several times."""
        some = filter(None, (self.found, self.best, self.random.best, self.recipe))
        return [*some, *self.front, *self.sizes, *self.starts, *self.final]

    @model_validator(mode="after")
    def _agrees(self) -> "SearchSummary":
        many = len(self.objectives)
        for fault, expected in (
            (any(width != many for row in (self.base, *self.rows) for width in row.widths()),
             "a score by each objective in each row"),
            (len(self.held) != many, "a number of held-out samples for each objective"),
            (any(number >= many for number in self.deciding),
             "numbers of objectives that there are"),
            (any(row.trial >= self.trials for row in self.rows),
             "numbers of trials that there were"),
        ):  # fmt: skip
            if fault:
                raise ValueError(f"expected {expected}")
        return self
