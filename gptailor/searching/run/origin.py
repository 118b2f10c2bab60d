"""The origin of a trial's plan as data, `TrialOrigin`, and in words, `origin_words`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias, final

from pydantic import Field

from gptailor.plan.output_size import LayerCount
from gptailor.plan.plan import BuiltClosed, Pair, Position, Several
from gptailor.plan.windows import window_words
from gptailor.searching.run.records import Line

# -------------------------------------------------------------------------------- layers' models


@final
class ModelAlone(BuiltClosed):
    """Layers of one model."""

    kind: Literal["model"] = "model"
    model: Line


@final
class UniformMerge(BuiltClosed):
    """Layers of several models, merged with equal coefficients.

    With `every` these are all models that the space merges. `coefficient` is each model's; without
    it the merge is the mean.
    """

    kind: Literal["merge"] = "merge"
    models: Annotated[Several[Line], Field(min_length=1)]
    every: bool = False
    coefficient: float | None = None


@final
class SearchedRecipe(BuiltClosed):
    """The best recipe of a search, which no composition has: compared with nothing dropped."""

    kind: Literal["recipe"] = "recipe"


Composition: TypeAlias = Annotated[ModelAlone | UniformMerge, Field(discriminator="kind")]
"""The models that a plan's layers are made of, as a person would choose them."""
StartRecipe: TypeAlias = Annotated[
    ModelAlone | UniformMerge | SearchedRecipe, Field(discriminator="kind")
]
"""How a starting plan's layers are made."""


def composition_models(of: ModelAlone | UniformMerge) -> tuple[str, ...]:
    """Return the names of the models, each once."""
    return (of.model,) if isinstance(of, ModelAlone) else of.models


def composition_words(of: ModelAlone | UniformMerge | SearchedRecipe) -> str:
    """Return `math`, `uniform merge of math and code by 0.6`, `best uncut plan`."""
    if isinstance(of, SearchedRecipe):
        return "best uncut plan"
    if isinstance(of, ModelAlone):
        return of.model
    models = "" if of.every else f" of {' and '.join(of.models)}"
    each = "" if of.coefficient is None else f" by {of.coefficient:g}"
    return f"uniform merge{models}{each}"


# ------------------------------------------------------------------------------- starting plans

_Block: TypeAlias = Pair[Position]
"""The first and the last layer of a repeated block."""


class _OfComposition(BuiltClosed):
    """A starting plan; `of` is None where the space makes the layers of all its plans alike."""

    of: StartRecipe | None = None


@final
class PlanLayers(_OfComposition):
    """The layers that a plan has with nothing dropped, or its stack's layers.

    `again` are the blocks that each plan of the space repeats.
    """

    kind: Literal["layers"] = "layers"
    stack: bool = False
    again: Several[_Block] = ()


@final
class BlockInfluenceCut(_OfComposition):
    """Layers dropped by block influence; `layers` is their number where cuts have several sizes."""

    kind: Literal["block influence"] = "block influence"
    layers: LayerCount | None = None
    again: Several[_Block] = ()


@final
class GreedyRemoval(_OfComposition):
    """Layers dropped as greedy removal took them; `layers` as for block influence."""

    kind: Literal["greedy removal"] = "greedy removal"
    layers: LayerCount | None = None


@final
class NothingDropped(_OfComposition):
    """No layer dropped, where a space has cuts of several sizes and no cut."""

    kind: Literal["nothing dropped"] = "nothing dropped"


@final
class WindowCut(_OfComposition):
    """Layers dropped around one place: one stretch, where the space allows it."""

    kind: Literal["window"] = "window"
    dropped: Several[Position]


@final
class BestWindow(_OfComposition):
    """The best window, or the best window of a size."""

    kind: Literal["best window"] = "best window"
    layers: LayerCount | None = None


@final
class BridgedCut(_OfComposition):
    """The cut with the gaps that a bridge closes best, or second or third best.

    `layers` is the number of dropped layers if cuts have several sizes.
    """

    kind: Literal["bridged cut"] = "bridged cut"
    rank: Literal[1, 2, 3]
    layers: LayerCount | None = None


@final
class SmallestSize(_OfComposition):
    """The smallest open size of one cut, such as `vocabulary`; the other sizes are the largest."""

    kind: Literal["smallest size"] = "smallest size"
    cut: Literal["vocabulary", "width", "experts"]
    size: Annotated[int, Field(ge=1)]


@final
class RivalPlan(BuiltClosed):
    """A plan that a person would write, for comparing: a composition with a usual cut."""

    kind: Literal["rival"] = "rival"
    of: Composition
    cut: Literal["best window", "block influence"]


# ------------------------------------------------------------------------------------ all others


@final
class RandomPlan(BuiltClosed):
    """A plan drawn at random."""

    kind: Literal["random"] = "random"


@final
class StrategyPlan(BuiltClosed):
    """A plan that a strategy asked for."""

    kind: Literal["strategy"] = "strategy"
    strategy: Line


TrialOrigin: TypeAlias = Annotated[
    PlanLayers
    | BlockInfluenceCut
    | GreedyRemoval
    | NothingDropped
    | WindowCut
    | BestWindow
    | BridgedCut
    | SmallestSize
    | RivalPlan
    | RandomPlan
    | StrategyPlan,
    Field(discriminator="kind"),
]
"""The source of a trial's plan."""

_RANKS: Mapping[int, str] = {1: "best", 2: "second", 3: "third"}


def origin_words(  # noqa: C901, PLR0911 (a case for each origin)
    origin: TrialOrigin,
) -> str:
    """Return the origin for people: `best window on math`."""
    match origin:
        case PlanLayers(of=of, stack=stack, again=again):
            name = None if of is None else composition_words(of)
            if stack:
                name = "the stack's layers" if name is None else f"the stack's layers of {name}"
            return (name or "the plan's layers") + _again(again)
        case BlockInfluenceCut(of=of, layers=layers, again=again):
            return _on("block influence", of) + _layers(layers) + _again(again)
        case GreedyRemoval(of=of, layers=layers):
            return _on("greedy removal", of) + _layers(layers)
        case NothingDropped(of=of):
            return "nothing dropped" if of is None else f"{composition_words(of)}, nothing dropped"
        case WindowCut(of=of, dropped=dropped):
            return _on(f"window {_cut_words(dropped)}", of)
        case BestWindow(of=of, layers=layers):
            return _on("best window" if layers is None else f"best window of {layers}", of)
        case BridgedCut(of=of, rank=rank, layers=layers):
            return _on(f"{_RANKS[rank]} bridged cut", of) + _layers(layers)
        case SmallestSize(of=of, cut=cut, size=size):
            return _on(f"{cut} {size}", of)
        case RivalPlan(of=of, cut=cut):
            return f"{cut} on {composition_words(of)}"
        case RandomPlan():
            return "random"
        case StrategyPlan(strategy=strategy):
            return strategy


def of_best_recipe(origin: TrialOrigin) -> bool:
    """Return whether a plan has the best recipe of a search, which nobody would write by hand."""
    return isinstance(origin, _OfComposition) and isinstance(origin.of, SearchedRecipe)


def _on(name: str, of: ModelAlone | UniformMerge | SearchedRecipe | None) -> str:
    return name if of is None else f"{name} on {composition_words(of)}"


def _layers(count: int | None) -> str:
    return "" if count is None else f", {count} layer{'s' * (count != 1)}"


def _again(blocks: Sequence[tuple[int, int]]) -> str:
    """Return `, L10..L12 again`."""
    return f", {' and '.join(map(window_words, blocks))} again" if blocks else ""


def _cut_words(cut: Sequence[int]) -> str:
    """Return `L5..L11`, `L3, L7`, `nothing`."""
    if len(cut) > 1 and cut[-1] - cut[0] == len(cut) - 1:
        return f"L{cut[0]}..L{cut[-1]}"
    return ", ".join(f"L{position}" for position in cut) or "nothing"
