"""mergekit's merge methods as recipes: one tensor's sources and parameters in, a recipe out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gptailor.convert.note import Unsayable
from gptailor.convert.settings import Value
from gptailor.plan import LayerOf, Merge, MethodCall, Recipe, Take

SMALLEST_SUM = 1e-8
"""mergekit doesn't divide by a sum of weights that is smaller."""


@dataclass(frozen=True)
class Ingredient:
    """A source's tensor, with what its parameters are there."""

    layer: LayerOf
    is_base: bool
    given: Mapping[str, Value]

    def number(self, name: str) -> float:
        """A parameter that must be there."""
        value = self.given[name]
        if value is None:
            raise Unsayable(f"'{self.layer.model}' has no '{name}', which mergekit demands")
        return float(value)


@dataclass(frozen=True)
class Mixture:
    """What mergekit makes a tensor of."""

    method: str
    sources: Sequence[Ingredient]
    shared: Mapping[str, Value]

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


@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit: the parameters that it reads, and the recipe that it is."""

    by_source: tuple[str, ...]
    shared: tuple[str, ...]
    recipe: Callable[[Mixture], Recipe]
    differs: str = ""
    """What is different in each merge by it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that it reads."""
        return self.by_source + self.shared


def _merge(
    sources: Sequence[Ingredient], name: str, **arguments: float | tuple[float, ...]
) -> Merge:
    layers = tuple(source.layer for source in sources)
    return Merge(merge=layers, by=MethodCall(name=name, arguments=dict(arguments)))


def _passthrough(mixture: Mixture) -> Recipe:
    if len(mixture.sources) != 1:
        raise Unsayable(f"'passthrough' takes one source, and there are {len(mixture.sources)}")
    (source,) = mixture.sources
    scale = source.given["scale"]
    if scale is None or scale == 1:
        return Take(take=source.layer)
    return _merge([source], "linear", weights=(float(scale),))


def _linear(mixture: Mixture) -> Recipe:
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
    if len(kept) > 1 and set(kept) == {1.0 / len(kept)}:
        return _merge(sources, "linear")
    return _merge(sources, "linear", weights=kept)


def _slerp(mixture: Mixture) -> Recipe:
    t = mixture.number("t")
    if len(mixture.sources) != 2:
        raise Unsayable(f"'slerp' takes two sources, and there are {len(mixture.sources)}")
    if not 0 <= t <= 1:
        raise Unsayable(f"t = {t!r} goes beyond the sources; slerp's t lies in [0, 1]")
    first, second = mixture.base, mixture.others[0]
    if t in (0, 1):
        return Take(take=(second if t else first).layer)
    return _merge([first, second], "slerp", t=t)


def _karcher(mixture: Mixture) -> Recipe:
    if len(mixture.sources) == 1:
        return Take(take=mixture.sources[0].layer)
    return _merge(mixture.sources, "karcher")


def _model_stock(mixture: Mixture) -> Recipe:
    if mixture.flag("filter_wise", False):
        raise Unsayable("'model_stock' with filter_wise has an angle for each row; ours has one")
    if len(mixture.others) < 2:
        raise Unsayable("'model_stock' takes two sources or more besides the base")
    mixture.base  # noqa: B018 (it must be there)
    return _merge(_at_the_base(mixture, mixture.others), "model_stock")


# ------------------------------------------------------------------------------------ task vectors


@dataclass(frozen=True)
class _Vector:
    """A task vector that counts: its source, coefficient, density and gamma."""

    source: Ingredient
    weight: float
    density: float
    gamma: float = 0.01


def _vectors(mixture: Mixture, *, trims: bool = True) -> list[_Vector]:
    """Those whose weight and density aren't 0."""
    found = [
        _Vector(
            source,
            source.number("weight"),
            min(source.number("density"), 1.0) if trims else 1.0,
            source.number("gamma") if "gamma" in source.given else 0.01,
        )
        for source in mixture.others
    ]
    return [vector for vector in found if vector.weight != 0 and vector.density > 0]


def _factor(mixture: Mixture, *, normalize: bool) -> float:
    """What all weights are multiplied by: lambda, over their sum where they are normalised."""
    total = sum(source.number("weight") for source in mixture.others)
    divides = mixture.flag("normalize", normalize) and abs(total) >= SMALLEST_SUM
    return mixture.number("lambda") / (total if divides else 1.0)


def _at_the_base(mixture: Mixture, sources: Sequence[Ingredient]) -> Sequence[Ingredient]:
    """The sources, if they name the base's own layer number."""
    layer = mixture.base.layer.layer
    for source in sources:
        if source.layer.layer != layer:
            there = f"L{source.layer.layer} {source.layer.model}"
            raise Unsayable(f"'{mixture.method}' takes {there} against L{layer} of the base; "
                            "a plan takes task vectors layer by layer")  # fmt: skip
    return sources


def _summed(mixture: Mixture, vectors: Sequence[_Vector], factor: float) -> Recipe:
    """Plain task arithmetic."""
    scales = tuple(vector.weight * factor for vector in vectors)
    if not any(scales):
        return Take(take=mixture.base.layer)
    sources = _at_the_base(mixture, [vector.source for vector in vectors])
    scales = scales[:1] if len(set(scales)) == 1 else scales
    return _merge(sources, "task_arithmetic", scales=scales)


def _task_arithmetic(mixture: Mixture) -> Recipe:
    vectors = _vectors(mixture, trims=False)
    return _summed(mixture, vectors, _factor(mixture, normalize=False))


def _one(values: Sequence[float], name: str, method: str) -> float:
    """The value that all have."""
    if len(set(values)) > 1:
        said = ", ".join(f"{value!r}" for value in values)
        raise Unsayable(f"'{method}' here has one {name} for all sources, and these differ: {said}")
    return values[0]


def _ties(mixture: Mixture) -> Recipe:
    vectors = _vectors(mixture)
    scale = mixture.number("lambda")
    if not vectors or scale == 0:
        return Take(take=mixture.base.layer)
    density = _one([v.density for v in vectors], "density", "ties")
    _unrescaled(mixture, density)
    weight = _one([v.weight for v in vectors], "weight", "ties")
    if not mixture.flag("normalize", True):
        if len(vectors) > 1:
            raise Unsayable("'ties' with normalize: false sums those that agree, ours averages")
        scale *= weight
    sources = _at_the_base(mixture, [v.source for v in vectors])
    return _merge(sources, "ties", density=density, scale=scale)


def _unrescaled(mixture: Mixture, density: float) -> None:
    if density < 1 and mixture.flag("rescale", False):
        raise Unsayable(f"'{mixture.method}' with rescale: true stretches what is left to its old "
                        "L1 norm, which no method here does")  # fmt: skip


def _breadcrumbs(mixture: Mixture) -> Recipe:
    vectors = _vectors(mixture)
    factor = _factor(mixture, normalize=False)
    if all(vector.density == 1 for vector in vectors):
        return _summed(mixture, vectors, factor)
    density = _one([v.density for v in vectors], "density", "breadcrumbs")
    _unrescaled(mixture, density)
    gamma = _one([v.gamma for v in vectors], "gamma", "breadcrumbs")
    scale = _one([v.weight for v in vectors], "weight", "breadcrumbs") * factor
    if scale == 0:
        return Take(take=mixture.base.layer)
    sources = _at_the_base(mixture, [v.source for v in vectors])
    gamma = min(gamma, 1.0 - density)
    return _merge(sources, "breadcrumbs", density=density, gamma=gamma, scale=scale)


def _dare(mixture: Mixture) -> Recipe:
    vectors = _vectors(mixture)
    factor = _factor(mixture, normalize=False)
    if all(vector.density == 1 for vector in vectors):
        return _summed(mixture, vectors, factor)
    density = _one([v.density for v in vectors], "density", "dare")
    scale = _one([v.weight for v in vectors], "weight", "dare") * factor
    if scale == 0:
        return Take(take=mixture.base.layer)
    if not mixture.flag("rescale", True):
        scale *= density
    sources = _at_the_base(mixture, [v.source for v in vectors])
    return _merge(sources, "dare", density=density, scale=scale)


def _alone(method: Callable[[Mixture], Recipe]) -> Callable[[Mixture], Recipe]:
    """The method where signs are elected too: with one source there is nothing to elect."""

    def recipe(mixture: Mixture) -> Recipe:
        if len(_vectors(mixture)) > 1:
            name = mixture.method.removesuffix("_ties")
            raise Unsayable(f"'{mixture.method}' elects signs, which '{name}' here doesn't")
        return method(mixture)

    return recipe


# ------------------------------------------------------------------------------------- the methods

_TASK = ("normalize", "rescale", "int8_mask", "lambda")
_COUNTS = (
    "mergekit keeps int(density·n) entries of a tensor, gptailor round(density·n), and of equal "
    "entries all or none"
)
_DRAWS = (
    "other entries are dropped: gptailor's draws follow a seed, mergekit's don't; and mergekit "
    "rescales to the old L1 norm, gptailor by 1/density"
)

MERGEKIT_METHODS: dict[str, MergekitMethod] = {
    "passthrough": MergekitMethod(("scale",), (), _passthrough),
    "linear": MergekitMethod(("weight",), ("normalize",), _linear),
    "slerp": MergekitMethod(
        (),
        ("t",),
        _slerp,
        "where |cosθ| is above 0.9995 mergekit merges linearly, gptailor on the arc",
    ),
    "task_arithmetic": MergekitMethod(("weight", "density"), _TASK, _task_arithmetic),
    "ties": MergekitMethod(("weight", "density"), _TASK, _ties, _COUNTS),
    "dare_linear": MergekitMethod(("weight", "density"), _TASK, _dare, _DRAWS),
    "dare_ties": MergekitMethod(("weight", "density"), _TASK, _alone(_dare), _DRAWS),
    "breadcrumbs": MergekitMethod(("weight", "density", "gamma"), _TASK, _breadcrumbs, _COUNTS),
    "breadcrumbs_ties": MergekitMethod(
        ("weight", "density", "gamma"), _TASK, _alone(_breadcrumbs), _COUNTS
    ),
    "model_stock": MergekitMethod(
        (),
        ("filter_wise",),
        _model_stock,
        "where the task vectors' mean cosine is negative mergekit steps away from all sources, "
        "gptailor stays at the base",
    ),
    "karcher": MergekitMethod(
        (),
        ("max_iter", "tol"),
        _karcher,
        "mergekit stops after max_iter steps, gptailor where the mean no longer moves",
    ),
}
"""The methods that have an equivalent here."""

NO_EQUIVALENT = ("della", "della_linear", "nuslerp", "multislerp", "nearswap", "sce", "ram",
                 "ramplus_tl", "arcee_fusion")  # fmt: skip
"""The others of mergekit 0.1.5."""
