"""mergekit's merge methods as recipes: what each makes of a tensor's sources and parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from gptailor.convert.mergekit.mixture import Ingredient, Mixture
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import Recipe, Take
from gptailor.plan.registry import METHODS


def read_passthrough(mixture: Mixture) -> Recipe:
    """One source, multiplied where it has a scale."""
    if len(mixture.sources) != 1:
        raise Unsayable(f"'passthrough' takes one source, and there are {len(mixture.sources)}")
    (source,) = mixture.sources
    scale = source.given["scale"]
    if scale is None or scale == 1:
        return Take(take=source.layer)
    return mixture.merge([source], "linear", weight=(float(scale),))


def read_linear(mixture: Mixture) -> Recipe:
    """The sources with their weights, divided by the sum of these if that is so."""
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
    return mixture.merge(sources, "linear", **({} if equal else {"weight": kept}))


def read_slerp(mixture: Mixture) -> Recipe:
    """The base's tensor and the other one."""
    t = mixture.number("t")
    if len(mixture.sources) != 2:
        raise Unsayable(f"'slerp' takes two sources, and there are {len(mixture.sources)}")
    if not 0 <= t <= 1:
        raise Unsayable(f"t = {t!r} goes beyond the sources; slerp's t lies in [0, 1]")
    first, second = mixture.base, mixture.others[0]
    if t in (0, 1):
        return Take(take=(second if t else first).layer)
    return mixture.merge([first, second], "slerp", t=t)


def read_nuslerp(mixture: Mixture) -> Recipe:
    """Without a base it is slerp, whose t is the second source's share of the weights."""
    sources = mixture.others
    if len(sources) != 2:
        raise Unsayable(f"'nuslerp' takes two sources, and there are {len(sources)}")
    weights = tuple(source.number("weight") for source in sources)
    if abs(sum(weights)) < 1e-6:  # mergekit's bound
        weights = (1.0, 1.0)
    t = weights[1] / sum(weights)
    on_base = len(sources) < len(mixture.sources)
    if t in (0, 1):
        return Take(take=sources[int(t)].layer)
    flat = mixture.flag("nuslerp_flatten", True)
    if flat and not on_base and 0 < t < 1:
        return mixture.merge(sources, "slerp", t=t)
    arguments: dict[str, Any] = {"weight": weights}
    if on_base:
        arguments["of"] = "task_vectors"
    if not flat:
        arguments["by"] = "column" if mixture.flag("nuslerp_row_wise", False) else "row"
    return mixture.merge(sources, "nuslerp", **arguments)


def read_multislerp(mixture: Mixture) -> Recipe:
    """Directions of the sources, or of the task vectors where there is a base."""
    sources = mixture.others
    if len(sources) < 2:
        return Take(take=sources[0].layer)
    weights = [source.number("weight") for source in sources]
    normalizes = mixture.flag("normalize_weights", True)
    if normalizes and sum(weights) == 0:
        raise Unsayable("the weights sum to 0, by which mergekit divides")
    arguments: dict[str, Any] = {"weight": tuple(weights)}
    if len(set(weights)) == 1:
        arguments = {} if normalizes else {"weight": weights[0]}
    if not normalizes:
        arguments["normalize"] = "no"
    if len(sources) < len(mixture.sources):
        arguments["of"] = "task_vectors"
    return mixture.merge(sources, "multislerp", **arguments)


def read_nearswap(mixture: Mixture) -> Recipe:
    """The base's tensor, and what is near it in the other one."""
    first, second = _pair(mixture)
    t = max(0.0, mixture.number("t"))
    return mixture.merge([first, second], "nearswap", t=t) if t else Take(take=first.layer)


def read_arcee_fusion(mixture: Mixture) -> Recipe:
    """The base's tensor, and what matters most in the other one."""
    return mixture.merge(_pair(mixture), "arcee_fusion")


def _pair(mixture: Mixture) -> list[Ingredient]:
    """The base and the one model beside it."""
    if len(mixture.sources) != 2:
        there = len(mixture.sources)
        raise Unsayable(f"'{mixture.method}' takes the base and one model, and there are {there}")
    return [mixture.base, *mixture.others]


def read_sce(mixture: Mixture) -> Recipe:
    """Task vectors by their size, where they differ most."""
    share = mixture.number_or("select_topk", 1.0)
    sources = mixture.others
    if share <= 0 or not sources or (share < 1 and len(sources) == 1):
        return Take(take=mixture.base.layer)
    if len(sources) == 1:
        return Take(take=sources[0].layer)
    arguments = {"density": share} if share < 1 else {}
    return mixture.merge(sources, "sce", **arguments, floor=EVEN)


EVEN = 1e-6
"""Where the means of sce's squares sum to less, mergekit weighs all alike."""


def read_ram(mixture: Mixture) -> Recipe:
    """Task vectors where they are active; `ramplus_tl` too."""
    plus = mixture.method == "ramplus_tl"
    wanted = {"epsilon": 1e-5} | ({"r": 0.1, "alpha": 0.2} if plus else {})
    said = {name: mixture.number_or(name, default) for name, default in wanted.items()}
    given = {name: value for name, value in said.items() if value != wanted[name]}
    if not mixture.others:
        return Take(take=mixture.base.layer)
    if any(value < 0 for value in said.values()):
        raise Unsayable(f"'{mixture.method}' with a number below 0")
    return mixture.merge(mixture.others, "ram_plus" if plus else "ram", **given)


def read_karcher(mixture: Mixture) -> Recipe:
    """All sources."""
    if len(mixture.sources) == 1:
        return Take(take=mixture.sources[0].layer)
    return mixture.merge(mixture.sources, "karcher")


def read_model_stock(mixture: Mixture) -> Recipe:
    """All sources besides the base."""
    if len(mixture.others) < 2:
        raise Unsayable("'model_stock' takes two sources or more besides the base")
    by = {"by": "row"} if mixture.flag("filter_wise", False) else {}
    return mixture.merge(mixture.others, "model_stock", **by)


def read_task_arithmetic(mixture: Mixture) -> Recipe:
    """Task vectors as they are, each with its weight."""
    return _summed(mixture, [source for source in mixture.others if source.number("weight") != 0])


def _summed(mixture: Mixture, vectors: Sequence[Ingredient]) -> Recipe:
    factor = _factor(mixture)
    scales = tuple(vector.number("weight") * factor for vector in vectors)
    if not any(scales):
        return Take(take=mixture.base.layer)
    scales = scales[:1] if len(set(scales)) == 1 else scales
    return mixture.merge(vectors, "task_arithmetic", weight=scales)


def _factor(mixture: Mixture) -> float:
    """The factor of all weights: lambda, over their sum where they are normalised."""
    total = sum(source.number("weight") for source in mixture.others)
    divides = mixture.flag("normalize", False) and abs(total) >= 1e-8  # mergekit's bound
    return mixture.number("lambda") / (total if divides else 1.0)


def _trimmed(mixture: Mixture) -> list[Ingredient]:
    """The sources that count: those whose weight and density aren't 0."""
    return [s for s in mixture.others if s.number("weight") != 0 and s.number("density") > 0]


def _each(sources: Sequence[Ingredient], name: str) -> float | tuple[float, ...]:
    """A parameter of each source: one number where all have the same."""
    values = tuple(source.number(name) for source in sources)
    return values[0] if len(set(values)) == 1 else values


def _unrescaled(mixture: Mixture, vectors: Sequence[Ingredient]) -> None:
    if mixture.flag("rescale", False) and any(v.number("density") < 1 for v in vectors):
        raise Unsayable(f"'{mixture.method}' with rescale: true stretches what is left to its old "
                        "L1 norm, which no method here does")  # fmt: skip


def read_ties(mixture: Mixture) -> Recipe:
    """Trimmed task vectors, the mean or sum of those that agree."""
    vectors = _trimmed(mixture)
    _unrescaled(mixture, vectors)
    return _elected(mixture, vectors, "ties", {"density": _each(vectors, "density")}, default=True)


def _elected(
    mixture: Mixture,
    vectors: Sequence[Ingredient],
    name: str,
    arguments: Mapping[str, Any],
    *,
    default: bool,
) -> Recipe:
    """Task vectors that agree on a sign, their sum divided by their weights' if `normalize`."""
    scale, normalizes = mixture.number("lambda"), mixture.flag("normalize", default)
    if not vectors or scale == 0:
        return Take(take=mixture.base.layer)
    weights = _each(vectors, "weight")
    given: dict[str, Any] = {}
    if isinstance(weights, tuple):
        given["weight"] = weights
        if normalizes and min(weights) < 0 < max(weights):
            raise Unsayable("weights of both signs, normalised, may sum to 0 where sources agree")
    elif not normalizes and len(vectors) == 1:
        scale *= weights
    elif not normalizes:
        given["weight"] = weights
    said = "yes" if normalizes else "no"
    alone = len(vectors) == 1
    if not alone and said != METHODS[name].argument({}, "normalize"):
        given["normalize"] = said
    return mixture.merge(vectors, name, **arguments, scale=scale, **given)


def read_sparse(mixture: Mixture) -> Recipe:
    """Task vectors without their outliers, or with entries dropped at random, then summed; or
    merged where they agree on a sign.

    One source has nothing to elect.
    """
    elects = mixture.method in ("dare_ties", "breadcrumbs_ties", "della")
    vectors = _trimmed(mixture)
    whole = all(vector.number("density") == 1 for vector in vectors)
    if elects and len(vectors) > 1:
        normalizes = mixture.method == "della"
        if whole:
            return _elected(mixture, vectors, "ties", {"density": 1.0}, default=normalizes)
        given = _sparsity(mixture, vectors)
        return _elected(mixture, vectors, mixture.method, given, default=normalizes)
    if elects:
        divides = bool(vectors) and mixture.flag("normalize", mixture.method == "della")
        own = vectors[0].number("weight") if divides else 1.0
        factor = mixture.number("lambda") / own
    else:
        factor = _factor(mixture)
    weights = tuple(vector.number("weight") * factor for vector in vectors)
    if not any(weights):
        return Take(take=mixture.base.layer)
    if whole:
        given = {"weight": weights[:1] if len(set(weights)) == 1 else weights}
        return mixture.merge(vectors, "task_arithmetic", **given)
    given = _sparsity(mixture, vectors)
    same = len(set(weights)) == 1
    given |= {"scale": weights[0]} if same else {"weight": weights}
    return mixture.merge(vectors, _SUMMED[mixture.method], **given)


_SUMMED = {
    "dare_linear": "dare",
    "dare_ties": "dare",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs",
    "della_linear": "della_linear",
    "della": "della_linear",
}
"""The methods that sum what is left of task vectors."""


def _sparsity(mixture: Mixture, vectors: Sequence[Ingredient]) -> dict[str, Any]:
    """What is kept of each task vector, and whether it is rescaled."""
    given: dict[str, Any] = {"density": _each(vectors, "density")}
    if mixture.method.startswith("breadcrumbs"):
        _unrescaled(mixture, vectors)
        both = [(v.number("density"), v.number("gamma")) for v in vectors]
        gammas = tuple(min(gamma, 1.0 - density) for density, gamma in both)
        return given | {"gamma": gammas[0] if len(set(gammas)) == 1 else gammas}
    if mixture.method.startswith("della"):
        epsilons = [0.15 if (e := v.given["epsilon"]) is None else float(e) for v in vectors]
        for vector, epsilon in zip(vectors, epsilons, strict=True):
            density = vector.number("density")
            if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                raise Unsayable(f"density {density!r} and epsilon {epsilon!r}: density ± epsilon "
                                "lies in (0, 1), in mergekit too")  # fmt: skip
        given["epsilon"] = epsilons[0] if len(set(epsilons)) == 1 else tuple(epsilons)
    return given | {"rescale": "l1" if mixture.flag("rescale", True) else "no"}
