"""mergekit's methods around a base as recipes: task vectors, trimmed, drawn, or as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptailor.convert.mergekit.mixture import Ingredient, Mixture, at_the_base, merged
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import Recipe, Take

SMALLEST_SUM = 1e-8
"""mergekit doesn't divide by a sum of weights that is smaller."""


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


def _summed(mixture: Mixture, vectors: Sequence[_Vector], factor: float) -> Recipe:
    """Plain task arithmetic."""
    scales = tuple(vector.weight * factor for vector in vectors)
    if not any(scales):
        return Take(take=mixture.base.layer)
    sources = at_the_base(mixture, [vector.source for vector in vectors])
    scales = scales[:1] if len(set(scales)) == 1 else scales
    return merged(sources, "task_arithmetic", scales=scales)


def task_arithmetic_recipe(mixture: Mixture) -> Recipe:
    """Task vectors as they are, each with its weight."""
    vectors = _vectors(mixture, trims=False)
    return _summed(mixture, vectors, _factor(mixture, normalize=False))


def _one(values: Sequence[float], name: str, method: str) -> float:
    """The value that all have."""
    if len(set(values)) > 1:
        said = ", ".join(f"{value!r}" for value in values)
        raise Unsayable(f"'{method}' here has one {name} for all sources, and these differ: {said}")
    return values[0]


def ties_recipe(mixture: Mixture) -> Recipe:
    """Trimmed task vectors, the mean of those that agree: one weight and one density for all."""
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
    sources = at_the_base(mixture, [v.source for v in vectors])
    return merged(sources, "ties", density=density, scale=scale)


def _unrescaled(mixture: Mixture, density: float) -> None:
    if density < 1 and mixture.flag("rescale", False):
        raise Unsayable(f"'{mixture.method}' with rescale: true stretches what is left to its old "
                        "L1 norm, which no method here does")  # fmt: skip


def breadcrumbs_recipe(mixture: Mixture) -> Recipe:
    """Task vectors without their largest and smallest entries, alike for all sources."""
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
    sources = at_the_base(mixture, [v.source for v in vectors])
    gamma = min(gamma, 1.0 - density)
    return merged(sources, "breadcrumbs", density=density, gamma=gamma, scale=scale)


def dare_recipe(mixture: Mixture) -> Recipe:
    """Task vectors with entries dropped at random, alike for all sources."""
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
    sources = at_the_base(mixture, [v.source for v in vectors])
    return merged(sources, "dare", density=density, scale=scale)


def with_one_source(method: Callable[[Mixture], Recipe]) -> Callable[[Mixture], Recipe]:
    """The method where signs are elected too: with one source there is nothing to elect."""

    def recipe(mixture: Mixture) -> Recipe:
        if len(_vectors(mixture)) > 1:
            name = mixture.method.removesuffix("_ties")
            raise Unsayable(f"'{mixture.method}' elects signs, which '{name}' here doesn't")
        return method(mixture)

    return recipe
