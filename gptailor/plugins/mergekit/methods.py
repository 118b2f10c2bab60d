"""mergekit's merge methods: each has a row of `MERGEKIT_METHODS` for reading and writing it.

A row has mergekit's parameters with their defaults, and the arguments here that equal them. A
method with parameters that need arithmetic has functions of its own.

`read` turns a tensor's inputs into a recipe of a plan. Parameters may be gradients, which become
curves where a method here takes each source's number unchanged. Where `read` must compute with
them, it raises `NeedsLayerValues`, and the caller asks again with the values of each layer.

`write` turns a plan's recipe into the parameters of a slice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.sites import named_models


@final
class InexpressibleError(Exception):
    """A thing without an equivalent; whoever knows its place raises a ConversionError for it."""


# ------------------------------------------------------------------------------ numbers and recipes


@final
@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over a slice's layers, linear between them."""

    knots: tuple[float, ...]

    def __mul__(self, factor: float) -> "Gradient":
        return Gradient(tuple(knot * factor for knot in self.knots))

    def __float__(self) -> float:
        """Ask for the number at each layer."""
        raise NeedsLayerValues


Coefficient = float | Gradient
RecipeArgument = Coefficient | tuple[Coefficient, ...] | str
ParameterValue = Coefficient | bool | None


@final
class NeedsLayerValues(Exception):  # noqa: N818 (a request, not an error)
    """A recipe can't be read from gradients, but can from the numbers at a layer."""


@final
@dataclass(frozen=True)
class TensorRecipe:
    """A recipe without layer numbers: one model unchanged (no method), or models merged by one."""

    models: tuple[str, ...]
    method: str = ""
    arguments: tuple[tuple[str, RecipeArgument], ...] = ()

    def arguments_with(self, replaced: Callable[[Gradient], Any]) -> dict[str, Any]:
        """Return the arguments with each gradient replaced."""

        def value(argument: RecipeArgument) -> Any:
            if isinstance(argument, tuple):
                return tuple(map(value, argument))
            return replaced(argument) if isinstance(argument, Gradient) else argument

        return {name: value(argument) for name, argument in self.arguments}


def _coefficient(owner: str, parameters: Mapping[str, ParameterValue], name: str) -> Coefficient:
    """Return a mandatory parameter; a density is kept from 0, no entry, to 1, all entries."""
    value = parameters[name]
    if value is None:
        raise InexpressibleError(f"'{owner}' needs '{name}' in mergekit")
    if name == "density" and not isinstance(value, Gradient):
        return min(max(float(value), 0.0), 1.0)
    return value if isinstance(value, Gradient) else float(value)


@final
@dataclass(frozen=True)
class SourceTensor:
    """A source's tensor and its parameters."""

    model: str
    is_base: bool
    parameters: Mapping[str, ParameterValue]

    @property
    def alone(self) -> TensorRecipe:
        """The recipe of this tensor unchanged."""
        return TensorRecipe((self.model,))

    def coefficient(self, name: str) -> Coefficient:
        """Return a mandatory parameter."""
        return _coefficient(self.model, self.parameters, name)


WITHOUT_BASE = "'{}' needs one of its sources as base_model, also in mergekit"


@final
@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a merge of one tensor: a method, its sources and the shared parameters."""

    method: "MergekitMethod"
    sources: Sequence[SourceTensor]
    shared: Mapping[str, ParameterValue]
    trims_some: bool = False
    """True if the file has a density other than 1, for this tensor or another."""

    @property
    def base(self) -> SourceTensor:
        """The base's tensor."""
        base = next((source for source in self.sources if source.is_base), None)
        if base is None:
            raise InexpressibleError(WITHOUT_BASE.format(self.method.name))
        return base

    @property
    def fine_tunes(self) -> list[SourceTensor]:
        """The sources besides the base."""
        return [source for source in self.sources if not source.is_base]

    @property
    def merged(self) -> Sequence[SourceTensor]:
        """The sources that are merged, by the role of the base."""
        if self.method.base == "none":
            return self.sources
        if self.method.base == "first":
            self.require_sources(2)
        return self.fine_tunes if self.method.base == "beside" else [self.base, *self.fine_tunes]

    def coefficient(self, name: str) -> Coefficient:
        """Return a mandatory shared parameter."""
        return _coefficient(self.method.name, self.shared, name)

    def require_sources(self, count: int) -> None:
        """Raise InexpressibleError unless there are `count` sources."""
        if len(self.sources) != count:
            expected = {1: "one source", 2: "two sources"}[count]
            raise InexpressibleError(
                f"'{self.method.name}' takes {expected}, got {len(self.sources)}"
            )


def method_call(recipe: Recipe) -> MethodCall:
    """Return the method of a merge; `linear` by default."""
    by = recipe.by if isinstance(recipe, Merge) else None
    return by if isinstance(by, MethodCall) else MethodCall(name="linear")


@final
@dataclass(frozen=True)
class SliceRecipe:
    """A plan's recipe, to be written by a method of mergekit into a slice that has these models."""

    recipe: Recipe
    method: "MergekitMethod"
    slice_models: Sequence[str]

    @property
    def models(self) -> list[str]:
        """The models that the recipe merges."""
        return [name for _, name, _ in named_models(self.recipe)]

    def argument(self, name: str) -> Any:
        """Return an argument of the method, or its default."""
        call = method_call(self.recipe)
        return METHODS[call.name].argument(call.arguments, name)

    def numbers(self, name: str) -> Sequence[int | float]:
        """Return an argument as one number per source."""
        count, argument = len(self.models), self.argument(name)
        if not isinstance(argument, tuple):
            argument = (1 / count if argument is None else argument,)
        numbers: tuple[int | float, ...] = argument
        return numbers * count if len(numbers) == 1 else numbers

    def blocks(
        self, models: Sequence[str], **columns: Sequence[int | float]
    ) -> list[dict[str, Any]]:
        """Return a block per model with its numbers; the weight is 0 outside the recipe."""
        rows = zip(*columns.values(), strict=True)
        blocks = [dict(zip(columns, map(float, row), strict=True)) for row in rows]
        block_of = dict(zip(self.models, blocks, strict=True))
        return [block_of.get(model, {"weight": 0.0}) for model in models]

    def require_all_models(self) -> None:
        """Raise InexpressibleError unless the recipe merges all models of the slice."""
        beside = self.method.base_beside
        models = ["base", *self.models] if beside else self.models
        if (beside and isinstance(self.recipe, Take)) or models != list(self.slice_models):
            raise InexpressibleError(
                f"mergekit's {self.method.name} always merges all models of a slice"
            )


WrittenParameters = tuple[list[dict[str, Any]], dict[str, Any]]
"""A block of parameters for each model of a slice, if any have some, and the slice's own."""


def _merged(
    sources: Sequence[SourceTensor], method: str, **arguments: RecipeArgument
) -> TensorRecipe:
    """Return a merge without the arguments that equal their defaults."""
    written = (*_ALWAYS_WRITTEN, "epsilon") if method.startswith("della") else _ALWAYS_WRITTEN
    kept = {
        name: value
        for name, value in arguments.items()
        if name in written or value != METHODS[method].argument({}, name)
    }
    return TensorRecipe(tuple(source.model for source in sources), method, tuple(kept.items()))


_ALWAYS_WRITTEN = ("density", "gamma", "rescale", "t")
"""Arguments that are written out even where they equal the default; `epsilon` of `della` too."""


def _read_row(inputs: MethodInputs) -> TensorRecipe:
    """Read a merge by the row's arguments; a single source is taken unchanged."""
    row, sources = inputs.method, inputs.merged
    if len(sources) < METHODS[row.here].least:
        return (sources[0] if sources else inputs.base).alone
    arguments: dict[str, RecipeArgument] = {}
    for argument, name in row.arguments.items():
        parameter = METHODS[row.here].parameter(argument)
        words = parameter.words if parameter is not None else ()
        arguments[argument] = (
            words[bool(inputs.shared[name])] if words else inputs.coefficient(name)
        )
    return _merged(sources, row.here, **arguments)


def _write_row(written: SliceRecipe) -> WrittenParameters:
    """Write the row's arguments; the word `row` is a flag that is set."""
    written.require_all_models()
    values = {name: written.argument(each) for each, name in written.method.arguments.items()}
    numbers = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
    return [], numbers | {name: True for name, value in values.items() if value == "row"}


@final
@dataclass(frozen=True)
class MergekitMethod:
    """A merge method of mergekit."""

    name: str
    here: str
    """The name of gptailor's method."""
    by_source: Mapping[str, ParameterValue]
    """The parameters of each source, with their defaults. A flag's default is a flag."""
    shared: Mapping[str, ParameterValue]
    """The parameters of a slice, with their defaults."""
    base: Literal["none", "first", "beside", "optional"] = "none"
    """The role of base_model: ignored, the first of two sources, or mandatory or optional beside
    the sources.
    """
    read: Callable[[MethodInputs], TensorRecipe] = _read_row
    """Return the recipe that gives the same tensor; raise InexpressibleError without one."""
    write: Callable[[SliceRecipe], WrittenParameters] | None = _write_row
    """Return the parameters of a recipe; None where mergekit's tensors differ."""
    differs: str = ""
    """The difference from gptailor in each merge by it."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """gptailor's arguments that equal shared parameters, and these."""

    @property
    def base_beside(self) -> bool:
        """True if an exported slice has the base in addition to the sources."""
        return self.base in ("beside", "optional")

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """All parameters that mergekit reads, with their defaults."""
        return {**self.by_source, **self.shared}


# -------------------------------------------------------------------------------- arithmetic


def _has_gradient(coefficients: Sequence[Coefficient]) -> bool:
    return any(isinstance(coefficient, Gradient) for coefficient in coefficients)


def _joined(coefficients: Sequence[Coefficient]) -> RecipeArgument:
    """Return one coefficient if all are equal, else one per source."""
    return coefficients[0] if len(set(coefficients)) == 1 else tuple(coefficients)


def _refuse_sum_of_zero(weights: Sequence[Coefficient]) -> None:
    """Raise for weights that sum to 0; ask for each layer's numbers where gradients might."""
    least = sum(min(each.knots) if isinstance(each, Gradient) else each for each in weights)
    if _has_gradient(weights):
        if least <= 0:
            raise NeedsLayerValues
    elif abs(least) < 1e-8:
        raise InexpressibleError("the weights sum to 0, and mergekit divides by their sum")


# -------------------------------------------------------------------------------- sums and spheres


def _read_passthrough(inputs: MethodInputs) -> TensorRecipe:
    inputs.require_sources(1)
    (source,) = inputs.sources
    if source.parameters["scale"] in (None, 1):
        return source.alone
    return _merged([source], "linear", weight=(source.coefficient("scale"),))


def _read_linear(inputs: MethodInputs) -> TensorRecipe:
    """Read the weighted sum of the sources, divided by the weights' sum if normalised."""
    sources = [source for source in inputs.sources if source.coefficient("weight") != 0]
    divides = bool(inputs.shared["normalize"])
    if not sources:
        reason = (
            "sum to 0, and mergekit divides by their sum"
            if divides
            else "are 0, so the result is a tensor of zeros"
        )
        raise InexpressibleError(f"the weights {reason}")
    weights = tuple(source.coefficient("weight") for source in sources)
    if divides:
        _refuse_sum_of_zero(weights)
    total = None if _has_gradient(weights) else sum(map(float, weights))
    if total is not None and len(set(weights)) == 1 and (divides or total == 1):
        return sources[0].alone if len(sources) == 1 else _merged(sources, "linear")
    normalize = "yes" if divides and total != 1 else "no"
    return _merged(sources, "linear", weight=weights, normalize=normalize)


def _write_linear(written: SliceRecipe) -> WrittenParameters:
    share = written.recipe.share if isinstance(written.recipe, Merge) else None
    two = (1.0 - share, share) if isinstance(share, int | float) else None
    blocks = written.blocks(written.slice_models, weight=two or written.numbers("weight"))
    return blocks, {"normalize": written.argument("normalize") == "yes"}


def _read_slerp(inputs: MethodInputs) -> TensorRecipe:
    t = inputs.coefficient("t")
    first, second = inputs.merged
    return _on_arc(first, second, t, "t")


def _on_arc(
    first: SourceTensor, second: SourceTensor, t: Coefficient, shown_name: str
) -> TensorRecipe:
    knots = t.knots if isinstance(t, Gradient) else (t,)
    beyond = next((knot for knot in knots if not 0 <= knot <= 1), None)
    if beyond is not None:
        raise InexpressibleError(
            f"{shown_name} = {beyond!r} is out of bounds: slerp's t must be in [0, 1]"
        )
    if t in (0, 1):
        return (second if t else first).alone
    return _merged([first, second], "slerp", t=t)


def _write_pair(written: SliceRecipe) -> WrittenParameters:
    """Write t; in slerp it is the share of the slice's second model."""
    t = float(written.argument("t")) if isinstance(written.recipe, Merge) else 0.0
    if written.models[0] != written.slice_models[0]:
        if written.method.name == "nearswap":
            raise InexpressibleError("mergekit's nearswap always keeps the base_model of a slice")
        t = 1.0 - t
    return [], {"t": t}


def _read_nuslerp(inputs: MethodInputs) -> TensorRecipe:
    """Read an arc between two sources, or between their task vectors if there is a base."""
    sources = inputs.fine_tunes
    if len(sources) != 2:
        raise InexpressibleError(
            f"'nuslerp' takes two sources in addition to a base, got {len(sources)}"
        )
    flat, of = inputs.shared["nuslerp_flatten"], _vectors(inputs)
    by = "tensor" if flat else "column" if inputs.shared["nuslerp_row_wise"] else "row"
    weights = [source.coefficient("weight") for source in sources]
    if not _has_gradient(weights):
        first, second = map(float, weights)
        if abs(first + second) < 1e-6:  # mergekit's bound
            weights, first, second = [1.0, 1.0], 1.0, 1.0
        if flat and of == "weights":
            share = second / (first + second)
            return _on_arc(sources[0], sources[1], share, "the second source's share")
    return _merged(sources, "nuslerp", weight=tuple(weights), of=of, by=by)


def _vectors(inputs: MethodInputs) -> str:
    """Return the thing that `nuslerp` and `multislerp` merge: task vectors if there is a base."""
    return "task_vectors" if any(source.is_base for source in inputs.sources) else "weights"


def _write_nuslerp(written: SliceRecipe) -> WrittenParameters:
    blocks, by = _weights_of_task_vectors(written), written.argument("by")
    if by == "tensor":
        return blocks, {}
    return blocks, {"nuslerp_flatten": False, "nuslerp_row_wise": by == "column"}


def _read_multislerp(inputs: MethodInputs) -> TensorRecipe:
    """Read the weighted mean of the directions of sources, or of task vectors with a base."""
    sources = inputs.fine_tunes
    if len(sources) == 1:
        return sources[0].alone
    weights = tuple(source.coefficient("weight") for source in sources)
    if inputs.shared["normalize_weights"]:
        _refuse_sum_of_zero(weights)
    normalize = "yes" if inputs.shared["normalize_weights"] else "no"
    weight, of = _joined(weights), _vectors(inputs)
    return _merged(sources, "multislerp", weight=weight, normalize=normalize, of=of)


def _write_multislerp(written: SliceRecipe) -> WrittenParameters:
    blocks = _weights_of_task_vectors(written)
    return blocks, {"normalize_weights": written.argument("normalize") == "yes"}


def _weights_of_task_vectors(written: SliceRecipe) -> list[dict[str, Any]]:
    """Return the weights of `nuslerp` and `multislerp`, which need task vectors with a base."""
    written.require_all_models()
    if written.argument("of") != "task_vectors":
        raise InexpressibleError(
            f"mergekit's {written.method.name} takes task vectors where there is a base_model, "
            "which the output has its configuration of"
        )
    return [{}, *written.blocks(written.slice_models[1:], weight=written.numbers("weight"))]


# ------------------------------------------------------------------------------------- task vectors


def _read_model_stock(inputs: MethodInputs) -> TensorRecipe:
    if len(inputs.fine_tunes) < 2:
        raise InexpressibleError("'model_stock' needs at least two sources in addition to the base")
    return _read_row(inputs)


_SCE_FLOOR = 1e-6
"""The sum of `sce`'s weights below which mergekit takes them to be equal."""


def _read_sce(inputs: MethodInputs) -> TensorRecipe:
    """Read the task vectors where they differ most; a single source leaves nothing to select."""
    sources = inputs.merged
    density = float(inputs.coefficient("select_topk"))
    if density <= 0 or not sources:
        return inputs.base.alone
    if len(sources) == 1:
        return (sources[0] if density >= 1 else inputs.base).alone
    arguments: dict[str, RecipeArgument] = {} if density >= 1 else {"density": density}
    return _merged(sources, "sce", **arguments, floor=_SCE_FLOOR)


def _write_sce(written: SliceRecipe) -> WrittenParameters:
    parameters = _write_row(written)
    if written.argument("floor") != _SCE_FLOOR:
        raise InexpressibleError(
            "mergekit's sce gives equal weights where squares are small, which is "
            f"floor={_SCE_FLOOR!r} here"
        )
    return parameters


_WITHOUT_ELECTION = {
    "dare_ties": "dare",
    "breadcrumbs_ties": "breadcrumbs",
    "della": "della_linear",
}
"""The equivalent method for a single source, where sign election does nothing."""


def _read_task_vectors(inputs: MethodInputs) -> TensorRecipe:
    """Read a weighted sum of task vectors, trimmed by density, with or without sign election."""
    row = inputs.method
    vectors = [
        source
        for source in inputs.merged
        if source.coefficient("weight") != 0 and source.coefficient("density") != 0
    ]
    factor = inputs.coefficient("lambda")
    if not vectors or factor == 0:
        return inputs.base.alone
    weights = [vector.coefficient("weight") for vector in vectors]
    densities = [vector.coefficient("density") for vector in vectors]
    elects = METHODS[row.here].elects and len(vectors) > 1
    divides = bool(inputs.shared["normalize"]) and (elects or _can_divide(weights))
    # an exported file has one method, for tensors that keep all entries too
    trims = (inputs.trims_some and row.write is not None) or any(each != 1 for each in densities)
    trims = trims and row.name != "task_arithmetic"
    if not trims and not elects:
        return _task_arithmetic(vectors, weights, factor, divides=divides)
    method = row.here if trims else "ties"
    method = method if elects else _WITHOUT_ELECTION.get(method, method)
    arguments: dict[str, RecipeArgument] = {"density": _joined(densities)}
    if trims:
        arguments |= _trimming(method, vectors, densities)
    arguments |= _scale_and_weights(weights, factor, elects=elects, divides=divides)
    if trims and row.shared["rescale"]:
        arguments["rescale"] = "l1" if inputs.shared["rescale"] else "no"
    elif trims and inputs.shared["rescale"]:
        raise InexpressibleError(
            f"'{row.name}' with rescale: true stretches the remaining entries to their old L1 "
            "norm, which no method here does"
        )
    return _merged(vectors, method, **arguments)


def _can_divide(weights: Sequence[Coefficient]) -> bool:
    """Return whether mergekit divides by the weights' sum, which it does not if it is tiny."""
    if _has_gradient(weights):
        _refuse_sum_of_zero(weights)
        return True
    return abs(sum(map(float, weights))) >= 1e-8


def _scale_and_weights(
    weights: list[Coefficient], factor: Coefficient, *, elects: bool, divides: bool
) -> dict[str, RecipeArgument]:
    """Return scale, weights and normalisation; equal weights are left out where they can be."""
    several, weight = len(weights) > 1, weights[0]
    normalize = {"normalize": "yes" if divides else "no"}
    if len(set(weights)) > 1:
        return {"scale": factor, "weight": tuple(weights), **normalize}
    if divides:
        return {"scale": factor, **(normalize if several else {})}
    if elects or isinstance(weight, Gradient) or isinstance(factor, Gradient):
        return {"scale": factor, "weight": weight, **(normalize if several or not elects else {})}
    return {"scale": factor * weight}


def _task_arithmetic(
    vectors: Sequence[SourceTensor],
    weights: list[Coefficient],
    factor: Coefficient,
    *,
    divides: bool,
) -> TensorRecipe:
    """Return task arithmetic with weights that include the factor and a division by their sum."""
    if divides:
        total = sum(map(float, weights))
        weights = [float(weight) / total for weight in weights]
    if isinstance(factor, Gradient):
        weights = [factor * float(weight) for weight in weights]
    else:
        weights = [weight * factor for weight in weights]
    shared = weights[:1] if len(set(weights)) == 1 else weights
    return _merged(vectors, "task_arithmetic", weight=tuple(shared))


def _trimming(
    method: str, vectors: Sequence[SourceTensor], densities: Sequence[Coefficient]
) -> dict[str, RecipeArgument]:
    """Return breadcrumbs' gamma or della's epsilon, which depend on the densities."""
    name = {"breadcrumbs": "gamma", "della": "epsilon"}.get(method.partition("_")[0])
    if name is None:
        return {}
    numbers = [float(vector.coefficient(name)) for vector in vectors]
    pairs = list(zip(numbers, map(float, densities), strict=True))
    if name == "gamma":  # gamma is less where more than the density has to stay
        return {name: _joined([min(gamma, 1.0 - density) for gamma, density in pairs])}
    for epsilon, density in pairs:
        if density < 1 and not (density + epsilon < 1 and density - epsilon > 0):
            raise InexpressibleError(
                f"density {density:g} ± epsilon {epsilon:g} isn't within (0, 1), which mergekit "
                "refuses"
            )
    return {name: _joined(numbers)}


def _write_task_vectors(written: SliceRecipe) -> WrittenParameters:
    """Write the weights of the models besides the base; mergekit ignores the base's own weight."""
    names, fine_tunes = written.models, written.slice_models[1:]
    if isinstance(written.recipe, Take):
        if names != ["base"]:
            raise InexpressibleError(
                f"'{names[0]}' taken unchanged, among task vectors: mergekit would add rounding"
            )
        return [{}, *({"weight": 0.0} for _ in fine_tunes)], {}
    if "base" in names:
        raise InexpressibleError("the base as a source, which mergekit can't have here")
    method, scale = METHODS[method_call(written.recipe).name], written.argument("scale")
    normalizes = written.argument("normalize") == "yes"
    shared: dict[str, Any] = {"normalize": True} if normalizes else {}
    given = [name for name in ("weight", "density", "gamma") if method.parameter(name)]
    columns = {name: written.numbers(name) for name in given}
    if scale is not None and (method.elects or normalizes):
        shared = {"normalize": normalizes, "lambda": float(scale)}
    elif scale is not None:
        columns["weight"] = [weight * float(scale) for weight in columns["weight"]]
    return [{}, *written.blocks(fine_tunes, **columns)], shared


# ------------------------------------------------------------------------------------- the table

_WEIGHT: Mapping[str, ParameterValue] = {"weight": None}
_TRIMMED = {**_WEIGHT, "density": 1.0}
_CRUMBS = {**_TRIMMED, "gamma": 0.01}
_RANKED = {**_TRIMMED, "epsilon": 0.15}
_TASK = {"normalize": False, "rescale": False, "int8_mask": False, "lambda": 1.0}
_DIVIDED = {**_TASK, "normalize": True}
_RESCALED = {**_TASK, "rescale": True}
_TASK_VECTORS = (_read_task_vectors, _write_task_vectors)
_DRAWN = (_read_task_vectors, None)
_QUARTILES = (
    "mergekit computes divergences in float32, with rounding errors, and samples a million "
    "entries for the quartiles, so it chooses other entries near the threshold"
)
_ON_A_LINE = "where |cosθ| is above 0.9995 mergekit merges linearly, gptailor on the arc"
_COUNTS = (
    "mergekit keeps ⌊density·n⌋ entries of a tensor, gptailor the nearest whole number, and of "
    "equal entries all or nothing; where task vectors cancel exactly mergekit's elected sign is +, "
    "and gptailor keeps the base's entry"
)
_DRAWS = "mergekit drops other entries in each run, gptailor always those of its seed"
_NEGATIVE = (
    "where the task vectors' mean cosine is negative mergekit steps away from all sources, "
    "gptailor stays at the base"
)
_STOPS = "mergekit stops after max_iter steps, gptailor where the mean no longer moves"

MERGEKIT_METHODS: dict[str, MergekitMethod] = {row.name: row for row in (
    MergekitMethod("passthrough", "passthrough", {"scale": None}, {}, "none", _read_passthrough,
                   lambda _: ([], {})),
    MergekitMethod("linear", "linear", _WEIGHT, {"normalize": True}, "none", _read_linear,
                   _write_linear),
    MergekitMethod("slerp", "slerp", {}, {"t": None}, "first", _read_slerp, _write_pair,
                   _ON_A_LINE),
    MergekitMethod("nuslerp", "nuslerp", _WEIGHT,
                   {"nuslerp_flatten": True, "nuslerp_row_wise": False}, "optional",
                   _read_nuslerp, _write_nuslerp),
    MergekitMethod("multislerp", "multislerp", _WEIGHT, {"normalize_weights": True, "eps": None},
                   "optional", _read_multislerp, _write_multislerp),
    MergekitMethod("nearswap", "nearswap", {}, {"t": None}, "first", write=_write_pair,
                   arguments={"t": "t"}),
    MergekitMethod("arcee_fusion", "arcee_fusion", {}, {}, "first", write=None,
                   differs=_QUARTILES),
    MergekitMethod("task_arithmetic", "task_arithmetic", _TRIMMED, _TASK, "beside",
                   *_TASK_VECTORS),
    MergekitMethod("ties", "ties", _TRIMMED, _DIVIDED, "beside", *_TASK_VECTORS, _COUNTS),
    MergekitMethod("dare_linear", "dare", _TRIMMED, _RESCALED, "beside", *_DRAWN, _DRAWS),
    MergekitMethod("dare_ties", "dare_ties", _TRIMMED, _RESCALED, "beside", *_DRAWN, _DRAWS),
    MergekitMethod("della_linear", "della_linear", _RANKED, _RESCALED, "beside", *_DRAWN, _DRAWS),
    MergekitMethod("della", "della", _RANKED, {**_DIVIDED, "rescale": True}, "beside", *_DRAWN,
                   _DRAWS),
    MergekitMethod("breadcrumbs", "breadcrumbs", _CRUMBS, _TASK, "beside", *_TASK_VECTORS,
                   _COUNTS),
    MergekitMethod("breadcrumbs_ties", "breadcrumbs_ties", _CRUMBS, _TASK, "beside",
                   *_TASK_VECTORS, _COUNTS),
    MergekitMethod("sce", "sce", {}, {"select_topk": 1.0, "int8_mask": False}, "beside", _read_sce,
                   _write_sce, _COUNTS, {"density": "select_topk"}),
    MergekitMethod("ram", "ram", {}, {"epsilon": 1e-5}, "beside",
                   arguments={"epsilon": "epsilon"}),
    MergekitMethod("ramplus_tl", "ram_plus", {}, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
                   "beside", arguments={"r": "r", "alpha": "alpha", "epsilon": "epsilon"}),
    MergekitMethod("model_stock", "model_stock", {}, {"filter_wise": False}, "beside",
                   _read_model_stock, differs=_NEGATIVE, arguments={"by": "filter_wise"}),
    MergekitMethod("karcher", "karcher", {}, {"max_iter": None, "tol": None}, differs=_STOPS),
)}  # fmt: skip
"""All methods of mergekit 0.1.5."""
