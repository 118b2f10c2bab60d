"""mergekit's merge methods: each is a reader, a writer, and a row of `MERGEKIT_METHODS`.

A reader turns a tensor's inputs into a recipe of a plan. Parameters may be gradients, which become
curves where a method here takes each source's number unchanged. Where a reader must compute with
them, it raises `NeedsLayerValues`, and the caller asks again with the values of each layer.

A writer turns a plan's recipe into the parameters of a slice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from gptailor.convert.note import InexpressibleError
from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.sites import named_models

# ------------------------------------------------------------------------------ numbers and recipes


@final
@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over a slice's layers, linear between them."""

    knots: tuple[float, ...]

    def at(self, t: float) -> float:
        """Return the number at a place from 0 to 1."""
        scaled = t * (len(self.knots) - 1)
        low = int(scaled)
        high = min(len(self.knots) - 1, low + 1)
        share = scaled - low
        return (1 - share) * self.knots[low] + share * self.knots[high]


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
        """Return a mandatory parameter; a density is at most 1, which keeps all entries."""
        value = self.parameters[name]
        if value is None:
            raise InexpressibleError(f"'{self.model}' has no '{name}', which mergekit demands")
        if isinstance(value, Gradient):
            return value
        return min(float(value), 1.0) if name == "density" else float(value)


@final
@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a merge of one tensor: a method, its sources and the shared parameters."""

    method: str
    sources: Sequence[SourceTensor]
    shared: Mapping[str, ParameterValue]

    @property
    def base(self) -> SourceTensor:
        """The base's tensor."""
        base = next((source for source in self.sources if source.is_base), None)
        if base is None:
            message = (
                f"'{self.method}' needs its base_model among the sources, in mergekit too: name one"
                " of them"
            )
            raise InexpressibleError(message)
        return base

    @property
    def fine_tunes(self) -> list[SourceTensor]:
        """The sources besides the base."""
        return [source for source in self.sources if not source.is_base]

    def coefficient(self, name: str) -> Coefficient:
        """Return a mandatory shared parameter."""
        value = self.shared[name]
        if value is None:
            raise InexpressibleError(f"'{self.method}' has no '{name}', which mergekit demands")
        return value if isinstance(value, Gradient) else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a shared flag, or the method's default."""
        value = self.shared.get(name)
        return default if value is None else bool(value)

    def require_sources(self, count: int) -> None:
        """Raise InexpressibleError unless there are `count` sources."""
        if len(self.sources) != count:
            expected = {1: "one source", 2: "two sources"}[count]
            message = f"'{self.method}' takes {expected}, and there are {len(self.sources)}"
            raise InexpressibleError(message)


def method_call(recipe: Recipe) -> MethodCall:
    """Return the method of a merge; `linear` if it names none."""
    by = recipe.by if isinstance(recipe, Merge) else None
    return by if isinstance(by, MethodCall) else MethodCall(name="linear")


@final
@dataclass(frozen=True)
class SliceRecipe:
    """A plan's recipe, to be written by a method of mergekit into a slice that has these models."""

    recipe: Recipe
    method: str
    slice_models: Sequence[str]

    @property
    def models(self) -> list[str]:
        """The models that the recipe merges."""
        return [name for _, name, _ in named_models(self.recipe)]

    def argument(self, name: str) -> Any:
        """Return an argument of the method, or its default."""
        call = method_call(self.recipe)
        parameter, argument = METHODS[call.name].parameter(name), call.arguments.get(name)
        return parameter.default if argument is None and parameter is not None else argument

    def numbers(self, name: str) -> Sequence[int | float]:
        """Return an argument as one number per source."""
        count, argument = len(self.models), self.argument(name)
        if not isinstance(argument, tuple):
            argument = (1 / count if argument is None else argument,)
        numbers: tuple[int | float, ...] = argument
        return numbers * count if len(numbers) == 1 else numbers

    def weights(
        self, models: Sequence[str], weights: Sequence[int | float]
    ) -> list[dict[str, Any]]:
        """Return a block per model with its weight, which is 0 for models outside the recipe."""
        weight_of = dict(zip(self.models, weights, strict=True))
        return [{"weight": float(weight_of.get(model, 0.0))} for model in models]

    def require_all_models(self, *, beside_base: bool = True) -> None:
        """Raise InexpressibleError unless the recipe merges all models of the slice."""
        models = ["base", *self.models] if beside_base else self.models
        unmerged = beside_base and isinstance(self.recipe, Take)
        if unmerged or models != list(self.slice_models):
            message = f"mergekit's {self.method} takes all models of a slice, for each tensor"
            raise InexpressibleError(message)


WrittenParameters = tuple[list[dict[str, Any]], dict[str, Any]]
"""A block of parameters for each model of a slice, if any have some, and the slice's own."""


@final
@dataclass(frozen=True)
class MergekitMethod:
    """A merge method of mergekit."""

    name: str
    by_source: tuple[str, ...]
    """The parameters of each source."""
    shared: tuple[str, ...]
    """The parameters of a slice."""
    read: Callable[[MethodInputs], TensorRecipe]
    """Return the recipe that gives the same tensor; raise InexpressibleError without one."""
    write: Callable[[SliceRecipe], WrittenParameters] | None = None
    """Return the parameters of a recipe; None where mergekit's tensors differ."""
    base: Literal["none", "first", "beside", "optional"] = "none"
    """The role of base_model: ignored, the first of two sources, or mandatory or optional beside
    the sources.
    """
    differs: str = ""
    """The difference from gptailor in each merge by it."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Parameters with another default than in other methods."""

    @property
    def base_beside(self) -> bool:
        """True if an exported slice has the base beside the sources."""
        return self.base in ("beside", "optional")

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that mergekit reads."""
        return self.by_source + self.shared


def exported_method(name: str) -> "MergekitMethod | None":
    """Return mergekit's equivalent of a method of gptailor, if it has one."""
    method = MERGEKIT_METHODS.get(_MERGEKIT_NAMES.get(name, name))
    return method if method is not None and method.write is not None else None


_MERGEKIT_NAMES = {"ram_plus": "ramplus_tl"}
"""mergekit's names of methods that have another name here."""

_ALWAYS_WRITTEN = ("density", "gamma", "rescale", "t")
"""Arguments that are written out even where they equal the default; `epsilon` of `della` too."""


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


def _plain_numbers(coefficients: Sequence[Coefficient]) -> list[float]:
    """Return coefficients as numbers, for arithmetic; raise NeedsLayerValues for gradients."""
    if any(isinstance(coefficient, Gradient) for coefficient in coefficients):
        raise NeedsLayerValues
    return [float(number) for number in coefficients if not isinstance(number, Gradient)]


def _scaled(coefficient: Coefficient, factor: float) -> Coefficient:
    if isinstance(coefficient, Gradient):
        return Gradient(tuple(knot * factor for knot in coefficient.knots))
    return coefficient * factor


def _joined(coefficients: Sequence[Coefficient]) -> RecipeArgument:
    """Return one coefficient if all are equal, else one per source."""
    return coefficients[0] if len(set(coefficients)) == 1 else tuple(coefficients)


def _refuse_sum_of_zero(weights: Sequence[Coefficient]) -> None:
    """Raise for weights that sum to 0; ask for each layer's numbers where gradients might."""
    least = [min(weight.knots) if isinstance(weight, Gradient) else weight for weight in weights]
    if any(isinstance(weight, Gradient) for weight in weights):
        if sum(least) <= 0:
            raise NeedsLayerValues
    elif abs(sum(least)) < 1e-8:
        raise InexpressibleError("the weights sum to 0, by which mergekit divides")


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
    divides = inputs.flag("normalize", True)
    if not sources:
        reason = "sum to 0, by which mergekit divides" if divides else "are 0: a tensor of zeros"
        raise InexpressibleError(f"the weights {reason}")
    weights = tuple(source.coefficient("weight") for source in sources)
    if divides:
        _refuse_sum_of_zero(weights)
    if any(isinstance(weight, Gradient) for weight in weights):
        normalize = {"normalize": "yes"} if divides else {}
        return _merged(sources, "linear", weight=weights, **normalize)
    total = sum(_plain_numbers(weights))
    if len(sources) == 1 and (divides or weights == (1.0,)):
        return sources[0].alone
    if len(set(weights)) == 1 and (divides or total == 1):
        return _merged(sources, "linear")
    if divides and total != 1:
        return _merged(sources, "linear", weight=weights, normalize="yes")
    return _merged(sources, "linear", weight=weights)


def _write_linear(written: SliceRecipe) -> WrittenParameters:
    recipe = written.recipe
    weights: Sequence[int | float] = (1.0,)
    if isinstance(recipe, Merge):
        weights = written.numbers("weight")
        if isinstance(recipe.share, int | float):
            weights = (1.0 - recipe.share, recipe.share)
    normalizes = isinstance(recipe, Merge) and written.argument("normalize") == "yes"
    return written.weights(written.slice_models, weights), {"normalize": normalizes}


def _read_slerp(inputs: MethodInputs) -> TensorRecipe:
    t = inputs.coefficient("t")
    inputs.require_sources(2)
    return _on_arc(inputs.base, inputs.fine_tunes[0], t, "t")


def _on_arc(
    first: SourceTensor, second: SourceTensor, t: Coefficient, shown_name: str
) -> TensorRecipe:
    knots = t.knots if isinstance(t, Gradient) else (t,)
    beyond = next((knot for knot in knots if not 0 <= knot <= 1), None)
    if beyond is not None:
        message = f"{shown_name} = {beyond!r} goes beyond the sources; slerp's t lies in [0, 1]"
        raise InexpressibleError(message)
    if t in (0, 1):
        return (second if t else first).alone
    return _merged([first, second], "slerp", t=t)


def _write_slerp(written: SliceRecipe) -> WrittenParameters:
    """Write t, the share of the slice's second model."""
    t = float(written.argument("t")) if isinstance(written.recipe, Merge) else 0.0
    t = t if written.models[0] == written.slice_models[0] else 1.0 - t
    return [], {"t": t}


def _read_nuslerp(inputs: MethodInputs) -> TensorRecipe:
    """Read an arc between two sources, or between their task vectors if there is a base."""
    sources = inputs.fine_tunes
    if len(sources) != 2:
        message = f"'nuslerp' takes two sources besides a base, and there are {len(sources)}"
        raise InexpressibleError(message)
    has_base = len(inputs.sources) > 2
    flat = inputs.flag("nuslerp_flatten", True)
    by = "tensor" if flat else "column" if inputs.flag("nuslerp_row_wise", False) else "row"
    weights = [source.coefficient("weight") for source in sources]
    if not any(isinstance(weight, Gradient) for weight in weights):
        first, second = _plain_numbers(weights)
        if abs(first + second) < 1e-6:  # mergekit's bound
            weights, first, second = [1.0, 1.0], 1.0, 1.0
        if flat and not has_base:
            return _on_arc(
                sources[0], sources[1], second / (first + second), "the second source's share"
            )
    arguments: dict[str, RecipeArgument] = {"weight": tuple(weights)}
    arguments |= {"of": "task_vectors"} if has_base else {}
    arguments |= {} if by == "tensor" else {"by": by}
    return _merged(sources, "nuslerp", **arguments)


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
    divides = inputs.flag("normalize_weights", True)
    if divides:
        _refuse_sum_of_zero(weights)
    arguments: dict[str, RecipeArgument] = {"weight": _joined(weights)}
    arguments |= {} if divides else {"normalize": "no"}
    arguments |= {"of": "task_vectors"} if len(sources) < len(inputs.sources) else {}
    return _merged(sources, "multislerp", **arguments)


def _write_multislerp(written: SliceRecipe) -> WrittenParameters:
    blocks = _weights_of_task_vectors(written)
    return blocks, {"normalize_weights": written.argument("normalize") == "yes"}


def _weights_of_task_vectors(written: SliceRecipe) -> list[dict[str, Any]]:
    """Return the weights of `nuslerp` and `multislerp`, which need task vectors beside a base."""
    written.require_all_models()
    if written.argument("of") != "task_vectors":
        message = (
            f"mergekit's {written.method} takes task vectors where there is a base_model, which "
            "the output has its configuration of"
        )
        raise InexpressibleError(message)
    return [{}, *written.weights(written.slice_models[1:], written.numbers("weight"))]


def _read_karcher(inputs: MethodInputs) -> TensorRecipe:
    if len(inputs.sources) == 1:
        return inputs.sources[0].alone
    return _merged(inputs.sources, "karcher")


def _write_karcher(written: SliceRecipe) -> WrittenParameters:
    written.require_all_models(beside_base=False)
    return [], {}


def _read_nearswap(inputs: MethodInputs) -> TensorRecipe:
    inputs.require_sources(2)
    sources = [inputs.base, inputs.fine_tunes[0]]
    return _merged(sources, "nearswap", t=inputs.coefficient("t"))


def _write_nearswap(written: SliceRecipe) -> WrittenParameters:
    if written.models[0] != written.slice_models[0]:
        message = "mergekit's nearswap keeps the base_model of a slice, for each tensor"
        raise InexpressibleError(message)
    t = float(written.argument("t")) if isinstance(written.recipe, Merge) else 0.0
    return [], {"t": t}


def _read_arcee_fusion(inputs: MethodInputs) -> TensorRecipe:
    inputs.require_sources(2)
    return _merged([inputs.base, inputs.fine_tunes[0]], "arcee_fusion")


# ------------------------------------------------------------------------------------- task vectors


def _read_model_stock(inputs: MethodInputs) -> TensorRecipe:
    if len(inputs.fine_tunes) < 2:
        message = "'model_stock' takes two sources or more besides the base"
        raise InexpressibleError(message)
    assert inputs.base
    rows: dict[str, RecipeArgument] = {"by": "row"} if inputs.flag("filter_wise", False) else {}
    return _merged(inputs.fine_tunes, "model_stock", **rows)


def _write_model_stock(written: SliceRecipe) -> WrittenParameters:
    written.require_all_models()
    by_row = written.argument("by") == "row"
    return [], {"filter_wise": True} if by_row else {}


_SCE_FLOOR = 1e-6
"""The sum of `sce`'s weights below which mergekit takes them to be equal."""


def _read_sce(inputs: MethodInputs) -> TensorRecipe:
    """Read the task vectors where they differ most; a single source leaves nothing to select."""
    assert inputs.base
    (density,) = _plain_numbers([inputs.coefficient("select_topk")])
    if density <= 0 or not inputs.fine_tunes:
        return inputs.base.alone
    if len(inputs.fine_tunes) == 1:
        return (inputs.fine_tunes[0] if density >= 1 else inputs.base).alone
    arguments: dict[str, RecipeArgument] = {} if density >= 1 else {"density": density}
    return _merged(inputs.fine_tunes, "sce", **arguments, floor=_SCE_FLOOR)


def _write_sce(written: SliceRecipe) -> WrittenParameters:
    written.require_all_models()
    if written.argument("floor") != _SCE_FLOOR:
        message = (
            f"mergekit's sce weighs all alike where squares are small, which is floor="
            f"{_SCE_FLOOR!r} here"
        )
        raise InexpressibleError(message)
    return [], {"select_topk": float(written.argument("density"))}


def _read_ram(inputs: MethodInputs) -> TensorRecipe:
    """Read the changes that one source alone has, and the mean of those that several have."""
    assert inputs.base
    if not inputs.fine_tunes:
        return inputs.base.alone
    name = {"ramplus_tl": "ram_plus"}.get(inputs.method, "ram")
    arguments = {parameter: inputs.coefficient(parameter) for parameter in inputs.shared}
    return _merged(inputs.fine_tunes, name, **arguments)


def _write_ram(written: SliceRecipe) -> WrittenParameters:
    written.require_all_models()
    names = [parameter.name for parameter in METHODS[method_call(written.recipe).name].parameters]
    return [], {name: float(written.argument(name)) for name in names}


_GPTAILOR_NAMES = {"dare_linear": "dare"}
_NORMALIZED = ("ties", "della")
_RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")
_ELECTED = ("ties", "dare_ties", "breadcrumbs_ties", "della")
"""Methods that equal `ties` where nothing is trimmed; the others equal task arithmetic there."""
_WITHOUT_ELECTION = {
    "dare_ties": "dare_linear",
    "breadcrumbs_ties": "breadcrumbs",
    "della": "della_linear",
}
"""The equivalent method for a single source, where sign election does nothing."""


def _read_task_vectors(inputs: MethodInputs) -> TensorRecipe:
    """Read a weighted sum of task vectors, trimmed by density, with or without sign election."""
    assert inputs.base
    vectors = [source for source in inputs.fine_tunes if _has_effect(source)]
    factor = inputs.coefficient("lambda")
    if not vectors or factor == 0:
        return inputs.base.alone
    weights = [vector.coefficient("weight") for vector in vectors]
    densities = [vector.coefficient("density") for vector in vectors]
    elects = inputs.method in _ELECTED and len(vectors) > 1
    divides = inputs.flag("normalize", inputs.method in _NORMALIZED)
    divides = divides and (elects or _can_divide(weights))
    trims = inputs.method != "task_arithmetic" and any(density != 1 for density in densities)
    if not trims and not elects:
        return _task_arithmetic(vectors, weights, factor, divides=divides)
    method = inputs.method if trims else "ties"
    method = method if elects else _WITHOUT_ELECTION.get(method, method)
    arguments: dict[str, RecipeArgument] = {"density": _joined(densities)}
    if trims:
        arguments |= _trimming(method, vectors, densities)
    arguments |= _scale_and_weights(weights, factor, elects=elects, divides=divides)
    rescales = inputs.flag("rescale", inputs.method in _RESCALED)
    if trims and inputs.method in _RESCALED:
        arguments["rescale"] = "l1" if rescales else "no"
    elif trims and rescales:
        message = (
            f"'{inputs.method}' with rescale: true stretches what is left to its old L1 norm, which"
            " no method here does"
        )
        raise InexpressibleError(message)
    return _merged(vectors, _GPTAILOR_NAMES.get(method, method), **arguments)


def _has_effect(source: SourceTensor) -> bool:
    weight, density = source.coefficient("weight"), source.coefficient("density")
    return weight != 0 and (isinstance(density, Gradient) or density > 0)


def _can_divide(weights: Sequence[Coefficient]) -> bool:
    """Return whether mergekit divides by the weights' sum, which it does not if it is tiny."""
    if any(isinstance(weight, Gradient) for weight in weights):
        _refuse_sum_of_zero(weights)
        return True
    return abs(sum(_plain_numbers(weights))) >= 1e-8


def _scale_and_weights(
    weights: list[Coefficient], factor: Coefficient, *, elects: bool, divides: bool
) -> dict[str, RecipeArgument]:
    """Return scale, weights and normalisation; equal weights are left out where they can be."""
    if len(set(weights)) > 1:
        normalize = "yes" if divides else "no"
        return {"scale": factor, "weight": tuple(weights), "normalize": normalize}
    weight = weights[0]
    if divides:
        return {"scale": factor, **({"normalize": "yes"} if len(weights) > 1 else {})}
    if elects or isinstance(weight, Gradient) or isinstance(factor, Gradient):
        no = {"normalize": "no"} if len(weights) > 1 or not elects else {}
        return {"scale": factor, "weight": weight, **no}
    return {"scale": factor * weight}


def _task_arithmetic(
    vectors: Sequence[SourceTensor],
    weights: list[Coefficient],
    factor: Coefficient,
    *,
    divides: bool,
) -> TensorRecipe:
    """Return task arithmetic whose weights include the factor and a division by their sum."""
    if divides:
        total = sum(_plain_numbers(weights))
        weights = [weight / total for weight in _plain_numbers(weights)]
    if isinstance(factor, Gradient):
        weights = [_scaled(factor, number) for number in _plain_numbers(weights)]
    elif factor != 1:
        weights = [_scaled(weight, factor) for weight in weights]
    shared = weights[:1] if len(set(weights)) == 1 else weights
    return _merged(vectors, "task_arithmetic", weight=tuple(shared))


def _trimming(
    method: str, vectors: Sequence[SourceTensor], densities: Sequence[Coefficient]
) -> dict[str, RecipeArgument]:
    """Return breadcrumbs' gamma or della's epsilon, which depend on the densities."""
    if method.startswith("breadcrumbs"):  # gamma is less where more than the density has to stay
        gammas = _plain_numbers([vector.coefficient("gamma") for vector in vectors])
        pairs = zip(gammas, _plain_numbers(densities), strict=True)
        return {"gamma": _joined([min(gamma, 1.0 - density) for gamma, density in pairs])}
    if method.startswith("della"):
        epsilons = _plain_numbers([vector.coefficient("epsilon") for vector in vectors])
        for epsilon, density in zip(epsilons, _plain_numbers(densities), strict=True):
            if density < 1 and not (density + epsilon < 1 and density - epsilon > 0):
                message = (
                    f"density {density:g} ± epsilon {epsilon:g} isn't within (0, 1), which mergekit"
                    " refuses"
                )
                raise InexpressibleError(message)
        return {"epsilon": _joined(epsilons)}
    return {}


def _write_task_vectors(written: SliceRecipe) -> WrittenParameters:
    """Write the weights of the models besides the base, whose own weight mergekit ignores."""
    names, fine_tunes = written.models, written.slice_models[1:]
    if isinstance(written.recipe, Take):
        if names != ["base"]:
            message = (
                f"'{names[0]}' taken as it is, among task vectors: mergekit would add rounding"
            )
            raise InexpressibleError(message)
        return [{}, *({"weight": 0.0} for _ in fine_tunes)], {}
    if "base" in names:
        message = "the base's own task vector, which is 0, and which mergekit can't name"
        raise InexpressibleError(message)
    method, weights = METHODS[method_call(written.recipe).name], written.numbers("weight")
    normalizes = written.argument("normalize") == "yes"
    shared: dict[str, Any] = {"normalize": True} if normalizes else {}
    if method.name == "task_arithmetic":
        return [{}, *written.weights(fine_tunes, weights)], shared
    scale = float(written.argument("scale"))
    if method.elects or normalizes:
        shared = {"normalize": normalizes, "lambda": scale}
    else:
        weights = [weight * scale for weight in weights]
    columns = {"weight": weights}
    columns |= {n: written.numbers(n) for n in ("density", "gamma") if method.parameter(n)}
    rows = zip(*columns.values(), strict=True)
    block_of = {
        name: dict(zip(columns, map(float, row), strict=True))
        for name, row in zip(names, rows, strict=True)
    }
    return [{}, *(block_of.get(model, {"weight": 0.0}) for model in fine_tunes)], shared


# ------------------------------------------------------------------------------------- the table

_TASK = ("normalize", "rescale", "int8_mask", "lambda")
_TRIMMED = ("weight", "density")
_CRUMBS = ("weight", "density", "gamma")
_RANKED = ("weight", "density", "epsilon")
_QUARTILES = (
    "mergekit computes divergences in float32, where rounding rules them, and draws a million "
    "entries for the quartiles: near the threshold gptailor chooses otherwise"
)
_ON_A_LINE = "where |cosθ| is above 0.9995 mergekit merges linearly, gptailor on the arc"
_COUNTS = (
    "mergekit keeps ⌊density·n⌋ entries of a tensor, gptailor the nearest whole number, and of "
    "equal entries all or none; where task vectors cancel exactly mergekit's elected sign is +, "
    "and gptailor keeps the base's entry"
)
_DRAWS = "other entries are dropped: gptailor's draws follow a seed, mergekit's don't"
_NEGATIVE = (
    "where the task vectors' mean cosine is negative mergekit steps away from all sources, "
    "gptailor stays at the base"
)
_ACTIVE = {"epsilon": 1e-5}
_STOPS = "mergekit stops after max_iter steps, gptailor where the mean no longer moves"

MERGEKIT_METHODS: dict[str, MergekitMethod] = {row.name: row for row in (
    MergekitMethod("passthrough", ("scale",), (), _read_passthrough, lambda _: ([], {})),
    MergekitMethod("linear", ("weight",), ("normalize",), _read_linear, _write_linear),
    MergekitMethod("slerp", (), ("t",), _read_slerp, _write_slerp, "first", _ON_A_LINE),
    MergekitMethod("nuslerp", ("weight",), ("nuslerp_flatten", "nuslerp_row_wise"), _read_nuslerp,
                   _write_nuslerp, "optional"),
    MergekitMethod("multislerp", ("weight",), ("normalize_weights", "eps"), _read_multislerp,
                   _write_multislerp, "optional"),
    MergekitMethod("nearswap", (), ("t",), _read_nearswap, _write_nearswap, "first"),
    MergekitMethod("arcee_fusion", (), (), _read_arcee_fusion, None, "first", _QUARTILES),
    MergekitMethod("task_arithmetic", _TRIMMED, _TASK, _read_task_vectors, _write_task_vectors,
                   "beside"),
    MergekitMethod("ties", _TRIMMED, _TASK, _read_task_vectors, _write_task_vectors, "beside",
                   _COUNTS),
    MergekitMethod("dare_linear", _TRIMMED, _TASK, _read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("dare_ties", _TRIMMED, _TASK, _read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("della_linear", _RANKED, _TASK, _read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("della", _RANKED, _TASK, _read_task_vectors, None, "beside", _DRAWS),
    MergekitMethod("breadcrumbs", _CRUMBS, _TASK, _read_task_vectors, _write_task_vectors,
                   "beside", _COUNTS),
    MergekitMethod("breadcrumbs_ties", _CRUMBS, _TASK, _read_task_vectors, _write_task_vectors,
                   "beside", _COUNTS),
    MergekitMethod("sce", (), ("select_topk", "int8_mask"), _read_sce, _write_sce, "beside",
                   _COUNTS),
    MergekitMethod("ram", (), ("epsilon",), _read_ram, _write_ram, "beside", "", _ACTIVE),
    MergekitMethod("ramplus_tl", (), ("r", "alpha", "epsilon"), _read_ram, _write_ram, "beside",
                   "", _ACTIVE),
    MergekitMethod("model_stock", (), ("filter_wise",), _read_model_stock, _write_model_stock,
                   "beside", _NEGATIVE),
    MergekitMethod("karcher", (), ("max_iter", "tol"), _read_karcher, _write_karcher,
                   differs=_STOPS),
)}  # fmt: skip
"""All methods of mergekit 0.1.5."""
