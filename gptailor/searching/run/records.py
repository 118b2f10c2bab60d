"""The records in RUN: the request, `RunRecord`, and the plans that were handed over.

The module imports no NumPy, so that `pick` starts quickly.
"""

from typing import Annotated, Literal, NamedTuple, final

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from gptailor.plan.output_size import MOST, LayerCount, OutputSize, Tally
from gptailor.plan.plan import BuiltClosed, Several
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
    doesn't measure a plan's quality. `text` is the file that is read, if there is one.
    """

    name: Line
    direction: AimDirection
    scale: ScaleBy
    label: Line = ""
    unit: Line = ""
    size: bool = False
    text: Line = ""

    @property
    def short(self) -> str:
        """Return the name for a line."""
        return self.label or self.name


WrittenAim = Annotated[Aim, PlainSerializer(lambda aim: aim._asdict())]
"""An objective that JSON has as an object."""


WrittenSize = Annotated[OutputSize, PlainSerializer(lambda size: size._asdict())]


# --------------------------------------------------------------------------------- the request


@final
class SearchDigests(BuiltClosed):
    """The digests of a search's space, and of its models and texts by their names."""

    space: Line
    models: dict[str, Line]
    data: dict[str, Line]


@final
class RunRecord(BuiltClosed):
    """The settings and the inputs of a search, in `run.json`.

    `trials` is the budget. `objectives` are the objectives in words, `aims` their measures. A trial
    uses between `low` and `full` samples. `limits` are the requirements of sizes. `space` is the
    open plan that is searched, without its `search` block. `starts` is the version of the rules
    that choose starting plans.
    """

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


# ------------------------------------------------------------------------------ the result


@final
class RunSizes(BuiltClosed):
    """The sizes of the uncut base and of a search's plans, by the plans' digests."""

    base: WrittenSize
    plans: dict[str, WrittenSize]


@final
class RequirementNote(BuiltClosed):
    """A requirement in words, the key of its values in the study, and its bounds.

    `held_bound` is the bound on held-out samples. None is unknown.
    """

    require: Line
    measure: str
    bound: float | None
    held_bound: float | None


@final
class RequiredNote(BuiltClosed):
    """The requirements of a search, and the trials that met them.

    `evaluated` plans were compared with the requirements, all of them if `whole`; `met` are the
    trials that meet them. `nearest` is the trial with the smallest excess, if no plan meets them.
    """

    evaluated: Tally
    whole: bool
    met: Several[TrialNumber]
    nearest: TrialNumber | None
    rows: Several[RequirementNote]


Ended = Literal["budget", "exhausted", "interrupted"]
"""The reason why trials ended; `exhausted`: the strategy finds nothing new any more."""


@final
class ResultNote(BuiltClosed):
    """The facts of a search's end that its trials don't tell.

    `held` is the number of held-out samples of each objective. `left_out` and `beyond` are starting
    plans without room, and beyond the required sizes.
    """

    ended: Ended
    held: Several[Tally]
    required: RequiredNote | None
    left_out: Several[Line]
    beyond: Several[Line]


@final
class CurvePoint(BuiltClosed):
    """The best plan of one size: a point on the curve of quality over size.

    `share` and `nats` are the mean loss over the objectives, as a share of the base's scores and in
    their unit; None without such a mean. An `unrepaired` plan was scored without the bridge and the
    healing that it contains.
    """

    trial: TrialNumber
    size: WrittenSize
    lost: float
    share: float | None
    nats: float | None
    unrepaired: bool = False

    @property
    def file(self) -> str:
        """The file of the plan, as a path below RUN."""
        return front_file(self.trial)


def front_file(trial: int) -> str:
    """Return the file of a trial's plan, as a path below RUN."""
    return f"front/trial-{trial:04}.tailor"


@final
class HandedNote(BuiltClosed):
    """The plans that a search handed over: the best one, and the best of each size."""

    best: TrialNumber | None
    curve: Several[CurvePoint]
