"""mergekit's merge methods, a row each: how it is read as a recipe, and written from one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from gptailor.convert.mergekit.writing import (
    SaidParameters,
    write_karcher,
    write_linear,
    write_model_stock,
    write_nothing,
    write_slerp,
    write_task_vectors,
)
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import LayerOf, Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import METHODS

ParameterValue = float | bool | None


@final
@dataclass(frozen=True)
class Ingredient:
    """A source's tensor, with what its parameters are there."""

    layer: LayerOf
    is_base: bool
    given: Mapping[str, ParameterValue]

    def number(self, name: str) -> float:
        """A parameter that must be there; a density of 1 keeps all."""
        value = self.given[name]
        if value is None:
            raise Unsayable(f"'{self.layer.model}' has no '{name}', which mergekit demands")
        return min(float(value), 1.0) if name == "density" else float(value)


@final
@dataclass(frozen=True)
class Mixture:
    """What mergekit makes a tensor of: sources with their parameters, a method with its own."""

    method: str
    sources: Sequence[Ingredient]
    shared: Mapping[str, ParameterValue]

    @property
    def base(self) -> Ingredient:
        """The base's tensor."""
        found = next((source for source in self.sources if source.is_base), None)
        if found is None:
            raise Unsayable(f"'{self.method}' needs its base_model among the sources")
        return found

    @property
    def others(self) -> list[Ingredient]:
        """The sources besides the base."""
        return [source for source in self.sources if not source.is_base]

    def number(self, name: str) -> float:
        """A shared parameter that must be there."""
        value = self.shared[name]
        if value is None:
            raise Unsayable(f"'{self.method}' has no '{name}', which mergekit demands")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A shared flag, or the method's default."""
        value = self.shared[name]
        return default if value is None else bool(value)

    def merge(self, sources: Sequence[Ingredient], name: str, **arguments: Any) -> Merge:
        """Sources merged; task vectors are taken against the base's layer of the same number."""
        needs_base = METHODS[name].needs_base
        layer = self.base.layer.layer if needs_base else None
        for source in sources if needs_base else ():
            if source.layer.layer != layer:
                there = f"L{source.layer.layer} {source.layer.model}"
                raise Unsayable(f"'{self.method}' takes {there} against L{layer} of the base; "
                                "a plan takes task vectors layer by layer")  # fmt: skip
        layers = tuple(source.layer for source in sources)
        return Merge(merge=layers, by=MethodCall(name=name, arguments=arguments))


@final
@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit."""

    name: str
    by_source: tuple[str, ...]
    """The parameters that each source has for itself."""
    shared: tuple[str, ...]
    """The parameters that a slice has."""
    read: Callable[[Mixture], Recipe]
    """The recipe that gives the same tensor; Unsayable if none does."""
    write: Callable[[Recipe, Sequence[str]], SaidParameters] | None = None
    """The parameters that a recipe is in a slice of these models; None where tensors differ."""
    base: Literal["none", "first", "beside"] = "none"
    """The base_model: not read, the first of a slice's two sources, or one beside the sources."""
    differs: str = ""
    """What is different in each merge by it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that it reads."""
        return self.by_source + self.shared


# ---------------------------------------------------------------------------------- as recipes


def _read_passthrough(mixture: Mixture) -> Recipe:
    if len(mixture.sources) != 1:
        raise Unsayable(f"'passthrough' takes one source, and there are {len(mixture.sources)}")
    (source,) = mixture.sources
    scale = source.given["scale"]
    if scale is None or scale == 1:
        return Take(take=source.layer)
    return mixture.merge([source], "linear", weights=(float(scale),))


def _read_linear(mixture: Mixture) -> Recipe:
    weights = [source.number("weight") for source in mixture.sources]
    if mixture.flag("normalize", True):
        total = sum(weights)
        if total == 0:
            raise Unsayable("the weights sum to 0, by which mergekit divides")
        weights = [weight / total for weight in weights]
    pairs = [(s, w) for s, w in zip(mixture.sources, weights, strict=True) if w != 0]
    if not pairs:
        raise Unsayable("all weights are 0, which makes a tensor of zeros")
    sources, kept = [s for s, _ in pairs], tuple(w for _, w in pairs)
    if kept == (1.0,):
        return Take(take=sources[0].layer)
    equal = len(kept) > 1 and set(kept) == {1.0 / len(kept)}
    return mixture.merge(sources, "linear", **({} if equal else {"weights": kept}))


def _read_slerp(mixture: Mixture) -> Recipe:
    t = mixture.number("t")
    if len(mixture.sources) != 2:
        raise Unsayable(f"'slerp' takes two sources, and there are {len(mixture.sources)}")
    if not 0 <= t <= 1:
        raise Unsayable(f"t = {t!r} goes beyond the sources; slerp's t lies in [0, 1]")
    first, second = mixture.base, mixture.others[0]
    if t in (0, 1):
        return Take(take=(second if t else first).layer)
    return mixture.merge([first, second], "slerp", t=t)


def _read_nuslerp(mixture: Mixture) -> Recipe:
    """Without a base it is slerp, whose t is the second source's share of the weights."""
    if any(source.is_base for source in mixture.sources):
        raise Unsayable("'nuslerp' with a base_model merges task vectors on the sphere, which no "
                        "method here does")  # fmt: skip
    if len(mixture.sources) != 2:
        raise Unsayable(f"'nuslerp' takes two sources, and there are {len(mixture.sources)}")
    if not mixture.flag("nuslerp_flatten", True):
        raise Unsayable("'nuslerp' without nuslerp_flatten has an angle for each row; ours has one")
    weights = [source.number("weight") for source in mixture.sources]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total  # mergekit's bound
    if not 0 <= t <= 1:
        raise Unsayable(f"the second source's share is {t!r}; slerp's t lies in [0, 1]")
    if t in (0, 1):
        return Take(take=mixture.sources[int(t)].layer)
    return mixture.merge(mixture.sources, "slerp", t=t)


def _read_karcher(mixture: Mixture) -> Recipe:
    if len(mixture.sources) == 1:
        return Take(take=mixture.sources[0].layer)
    return mixture.merge(mixture.sources, "karcher")


def _read_model_stock(mixture: Mixture) -> Recipe:
    if mixture.flag("filter_wise", False):
        raise Unsayable("'model_stock' with filter_wise has an angle for each row; ours has one")
    if len(mixture.others) < 2:
        raise Unsayable("'model_stock' takes two sources or more besides the base")
    return mixture.merge(mixture.others, "model_stock")


def _read_task_arithmetic(mixture: Mixture) -> Recipe:
    """Task vectors as they are, each with its weight."""
    return _summed(mixture, [source for source in mixture.others if source.number("weight") != 0])


def _summed(mixture: Mixture, vectors: Sequence[Ingredient]) -> Recipe:
    factor = _factor(mixture)
    scales = tuple(vector.number("weight") * factor for vector in vectors)
    if not any(scales):
        return Take(take=mixture.base.layer)
    scales = scales[:1] if len(set(scales)) == 1 else scales
    return mixture.merge(vectors, "task_arithmetic", scales=scales)


def _factor(mixture: Mixture) -> float:
    """The factor of all weights: lambda, over their sum where they are normalised."""
    total = sum(source.number("weight") for source in mixture.others)
    divides = mixture.flag("normalize", False) and abs(total) >= 1e-8  # mergekit's bound
    return mixture.number("lambda") / (total if divides else 1.0)


def _trimmed(mixture: Mixture) -> list[Ingredient]:
    """The sources that count: those whose weight and density aren't 0."""
    return [s for s in mixture.others if s.number("weight") != 0 and s.number("density") > 0]


def _one(sources: Sequence[Ingredient], name: str, method: str) -> float:
    values = [source.number(name) for source in sources]
    if len(set(values)) > 1:
        said = ", ".join(f"{value!r}" for value in values)
        raise Unsayable(f"'{method}' here has one {name} for all sources, and these differ: {said}")
    return values[0]


def _unrescaled(mixture: Mixture, density: float) -> None:
    if density < 1 and mixture.flag("rescale", False):
        raise Unsayable(f"'{mixture.method}' with rescale: true stretches what is left to its old "
                        "L1 norm, which no method here does")  # fmt: skip


def _read_ties(mixture: Mixture) -> Recipe:
    """Trimmed task vectors, the mean of those that agree: one weight and one density for all."""
    vectors = _trimmed(mixture)
    scale = mixture.number("lambda")
    if not vectors or scale == 0:
        return Take(take=mixture.base.layer)
    density = _one(vectors, "density", "ties")
    _unrescaled(mixture, density)
    weight = _one(vectors, "weight", "ties")
    if not mixture.flag("normalize", True):
        if len(vectors) > 1:
            raise Unsayable("'ties' with normalize: false sums those that agree, ours averages")
        scale *= weight
    return mixture.merge(vectors, "ties", density=density, scale=scale)


def _read_sparse(mixture: Mixture) -> Recipe:
    """Task vectors without their outliers (breadcrumbs), or with entries dropped (dare).

    Where signs are elected too (`_ties`), one source has nothing to elect.
    """
    ours = mixture.method.partition("_")[0]
    vectors = _trimmed(mixture)
    if mixture.method.endswith("_ties") and len(vectors) > 1:
        raise Unsayable(f"'{mixture.method}' elects signs, which '{ours}' here doesn't")
    factor = _factor(mixture)
    if all(vector.number("density") == 1 for vector in vectors):
        return _summed(mixture, vectors)
    density = _one(vectors, "density", ours)
    arguments = {"density": density}
    if ours == "breadcrumbs":
        _unrescaled(mixture, density)
        arguments["gamma"] = min(_one(vectors, "gamma", ours), 1.0 - density)
    scale = _one(vectors, "weight", ours) * factor
    if scale == 0:
        return Take(take=mixture.base.layer)
    if ours == "dare" and not mixture.flag("rescale", True):
        scale *= density
    return mixture.merge(vectors, ours, **arguments, scale=scale)


# ------------------------------------------------------------------------------------- the table

_TASK = ("normalize", "rescale", "int8_mask", "lambda")
_TRIMMED = ("weight", "density")
_CRUMBS = ("weight", "density", "gamma")
_ON_A_LINE = "where |cosθ| is above 0.9995 mergekit merges linearly, gptailor on the arc"
_COUNTS = (
    "mergekit keeps ⌊density·n⌋ entries of a tensor, gptailor the nearest whole number, and of "
    "equal entries all or none; where task vectors cancel exactly mergekit's elected sign is +, "
    "and gptailor keeps the base's entry"
)
_DRAWS = (
    "other entries are dropped: gptailor's draws follow a seed, mergekit's don't; and mergekit "
    "rescales to the old L1 norm, gptailor by 1/density"
)
_NEGATIVE = (
    "where the task vectors' mean cosine is negative mergekit steps away from all sources, "
    "gptailor stays at the base"
)
_STOPS = "mergekit stops after max_iter steps, gptailor where the mean no longer moves"

MERGEKIT_METHODS: dict[str, MergekitMethod] = {row.name: row for row in (
    MergekitMethod("passthrough", ("scale",), (), _read_passthrough, write_nothing),
    MergekitMethod("linear", ("weight",), ("normalize",), _read_linear, write_linear),
    MergekitMethod("slerp", (), ("t",), _read_slerp, write_slerp, "first", _ON_A_LINE),
    MergekitMethod("nuslerp", ("weight",), ("nuslerp_flatten", "nuslerp_row_wise"), _read_nuslerp,
                   None, "beside"),
    MergekitMethod("task_arithmetic", _TRIMMED, _TASK, _read_task_arithmetic, write_task_vectors,
                   "beside"),
    MergekitMethod("ties", _TRIMMED, _TASK, _read_ties, write_task_vectors, "beside", _COUNTS),
    MergekitMethod("dare_linear", _TRIMMED, _TASK, _read_sparse, None, "beside", _DRAWS),
    MergekitMethod("dare_ties", _TRIMMED, _TASK, _read_sparse, None, "beside", _DRAWS),
    MergekitMethod("breadcrumbs", _CRUMBS, _TASK, _read_sparse, write_task_vectors, "beside",
                   _COUNTS),
    MergekitMethod("breadcrumbs_ties", _CRUMBS, _TASK, _read_sparse, None, "beside", _COUNTS),
    MergekitMethod("model_stock", (), ("filter_wise",), _read_model_stock, write_model_stock,
                   "beside", _NEGATIVE),
    MergekitMethod("karcher", (), ("max_iter", "tol"), _read_karcher, write_karcher,
                   differs=_STOPS),
)}  # fmt: skip
"""The methods that have an equivalent here."""

NO_EQUIVALENT = ("della", "della_linear", "multislerp", "nearswap", "sce", "ram",
                 "ramplus_tl", "arcee_fusion")  # fmt: skip
"""The others of mergekit 0.1.5."""
