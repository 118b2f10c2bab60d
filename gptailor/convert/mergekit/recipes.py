"""What mergekit makes of a tensor, in a plan's words: a reader for each of its methods.

Numbers may be gradients, which become curves where a method here takes each source's number as it
is; where arithmetic on them is needed `NeedsNumbers` asks for their values layer by layer.
"""

from collections.abc import Sequence

from gptailor.convert.mergekit.amounts import (
    Amount,
    GivenAmount,
    Gradient,
    Ingredient,
    Mix,
    Mixture,
    check_count,
    check_sum,
    merged,
    one_for_all,
    plain_numbers,
    take,
    times,
    yes_or_no,
)
from gptailor.convert.note import Unsayable

# ------------------------------------------------------------------------------- models as they are


def read_passthrough(mixture: Mixture) -> Mix:
    """The one source, multiplied by its scale."""
    check_count(mixture, 1)
    (source,) = mixture.sources
    scale = source.given["scale"]
    if scale is None or scale == 1:
        return take(source)
    return merged([source], "linear", weight=(source.amount("scale"),))


def read_linear(mixture: Mixture) -> Mix:
    """The sum of the sources by their weights, divided by the weights' sum."""
    sources = [source for source in mixture.sources if source.amount("weight") != 0]
    divides = mixture.flag("normalize", True)
    if not sources:
        why = "sum to 0, by which mergekit divides" if divides else "are 0: a tensor of zeros"
        raise Unsayable(f"the weights {why}")
    weights = tuple(source.amount("weight") for source in sources)
    if any(isinstance(weight, Gradient) for weight in weights):
        if divides:
            check_sum(weights)
        normalize = {"normalize": "yes"} if divides else {}
        return merged(sources, "linear", weight=weights, **normalize)
    total = sum(plain_numbers(weights))
    if divides:
        check_sum(weights)
    if len(sources) == 1 and (divides or weights == (1.0,)):
        return take(sources[0])
    if len(set(weights)) == 1 and (divides or total == 1):
        return merged(sources, "linear")
    if divides and total != 1:
        return merged(sources, "linear", weight=weights, normalize="yes")
    return merged(sources, "linear", weight=weights)


def read_slerp(mixture: Mixture) -> Mix:
    """The base and the other source on the arc between them."""
    t = mixture.amount("t")
    check_count(mixture, 2)
    first, second = mixture.base, mixture.others[0]
    return _slerp(first, second, t, "t")


def _slerp(first: Ingredient, second: Ingredient, t: Amount, what: str) -> Mix:
    knots = t.knots if isinstance(t, Gradient) else (t,)
    beyond = next((knot for knot in knots if not 0 <= knot <= 1), None)
    if beyond is not None:
        raise Unsayable(f"{what} = {beyond!r} goes beyond the sources; slerp's t lies in [0, 1]")
    if t in (0, 1):
        return take(second if t else first)
    return merged([first, second], "slerp", t=t)


def read_nuslerp(mixture: Mixture) -> Mix:
    """Two sources, or their task vectors, on the arc between them; t is the second one's share."""
    sources = mixture.others
    if len(sources) != 2:
        raise Unsayable(f"'nuslerp' takes two sources besides a base, and there are {len(sources)}")
    has_base = len(mixture.sources) > 2
    flat = mixture.flag("nuslerp_flatten", True)
    by = "tensor" if flat else "column" if mixture.flag("nuslerp_row_wise", False) else "row"
    weights = [source.amount("weight") for source in sources]
    if not any(isinstance(weight, Gradient) for weight in weights):
        total = sum(plain_numbers(weights))
        if abs(total) < 1e-6:  # mergekit's bound
            weights, total = [1.0, 1.0], 2.0
        if flat and not has_base:
            return _slerp(
                sources[0],
                sources[1],
                plain_numbers(weights)[1] / total,
                "the second source's share",
            )
    said: dict[str, GivenAmount] = {"weight": tuple(weights)}
    said |= {"of": "task_vectors"} if has_base else {}
    said |= {} if by == "tensor" else {"by": by}
    return merged(sources, "nuslerp", **said)


def read_multislerp(mixture: Mixture) -> Mix:
    """The weighted mean of directions, of the sources or of their task vectors."""
    sources = mixture.others
    if len(sources) == 1:
        return take(sources[0])
    weights = tuple(source.amount("weight") for source in sources)
    divides = mixture.flag("normalize_weights", True)
    if divides:
        check_sum(weights)
    said: dict[str, GivenAmount] = {"weight": one_for_all(weights)}
    said |= {} if divides else {"normalize": "no"}
    said |= {"of": "task_vectors"} if len(sources) < len(mixture.sources) else {}
    return merged(sources, "multislerp", **said)


def read_karcher(mixture: Mixture) -> Mix:
    """The mean on the sphere."""
    if len(mixture.sources) == 1:
        return take(mixture.sources[0])
    return merged(mixture.sources, "karcher")


def read_nearswap(mixture: Mixture) -> Mix:
    """The base, with what is near it in the other source."""
    check_count(mixture, 2)
    return merged([mixture.base, mixture.others[0]], "nearswap", t=mixture.amount("t"))


def read_arcee_fusion(mixture: Mixture) -> Mix:
    """The base, with the other source's changes that matter most."""
    check_count(mixture, 2)
    return merged([mixture.base, mixture.others[0]], "arcee_fusion")


# ------------------------------------------------------------------------------------- task vectors


def read_model_stock(mixture: Mixture) -> Mix:
    """The mean of the sources, pulled towards the base."""
    if len(mixture.others) < 2:
        raise Unsayable("'model_stock' takes two sources or more besides the base")
    assert mixture.base
    rows: dict[str, GivenAmount] = {"by": "row"} if mixture.flag("filter_wise", False) else {}
    return merged(mixture.others, "model_stock", **rows)


EVEN = 1e-6
"""Where `sce` has weights that sum to less, mergekit takes them to be equal."""


def read_sce(mixture: Mixture) -> Mix:
    """The task vectors where they differ most; of one source there is nothing to select."""
    assert mixture.base
    share = mixture.amount("select_topk")
    (density,) = plain_numbers([share])
    if density <= 0 or not mixture.others:
        return take(mixture.base)
    if len(mixture.others) == 1:
        return take(mixture.others[0] if density >= 1 else mixture.base)
    said: dict[str, GivenAmount] = {} if density >= 1 else {"density": density}
    return merged(mixture.others, "sce", **said, floor=EVEN)


def read_ram(mixture: Mixture) -> Mix:
    """What one source alone has changed, and the mean of what several have."""
    assert mixture.base
    if not mixture.others:
        return take(mixture.base)
    said = {name: mixture.amount(name) for name in mixture.shared}
    return merged(mixture.others, {"ramplus_tl": "ram_plus"}.get(mixture.method, "ram"), **said)


_OURS = {"dare_linear": "dare"}
_NORMALIZED = ("ties", "della")
_RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")
_ELECTED = ("ties", "dare_ties", "breadcrumbs_ties", "della")
"""Where nothing is trimmed these are `ties`, the others task arithmetic."""
_ALONE = {"dare_ties": "dare_linear", "breadcrumbs_ties": "breadcrumbs", "della": "della_linear"}
"""What a method is of one source, whose signs nobody votes against."""


def read_task_vectors(mixture: Mixture) -> Mix:
    """Task vectors, trimmed by their densities, by weight; signs elected or not."""
    assert mixture.base
    vectors = [s for s in mixture.others if s.amount("weight") != 0 and _keeps(s)]
    factor = mixture.amount("lambda")
    if not vectors or factor == 0:
        return take(mixture.base)
    weights = [vector.amount("weight") for vector in vectors]
    elects = mixture.method in _ELECTED and len(vectors) > 1
    divides = mixture.flag("normalize", mixture.method in _NORMALIZED)
    divides = divides and _divides(weights, elects=elects)
    densities = [vector.amount("density") for vector in vectors]
    trims = mixture.method != "task_arithmetic" and any(density != 1 for density in densities)
    if not trims and not elects:
        return _summed(vectors, weights, factor, divides=divides)
    method = mixture.method if trims else "ties"
    method = method if elects else _ALONE.get(method, method)
    said: dict[str, GivenAmount] = {"density": one_for_all(densities)}
    if trims and method.startswith("breadcrumbs"):
        said["gamma"] = one_for_all(_gammas(vectors, densities))
    if trims and method.startswith("della"):
        said["epsilon"] = one_for_all(_epsilons(vectors, densities))
    said |= _scaled(weights, factor, elects=elects, divides=divides)
    rescales = mixture.flag("rescale", mixture.method in _RESCALED)
    if trims and mixture.method in _RESCALED:
        said["rescale"] = "l1" if rescales else "no"
    elif trims and rescales:
        raise Unsayable(f"'{mixture.method}' with rescale: true stretches what is left to its old "
                        "L1 norm, which no method here does")  # fmt: skip
    return merged(vectors, _OURS.get(method, method), **said)


def _divides(weights: Sequence[Amount], *, elects: bool) -> bool:
    """Whether a sum is divided by that of these weights, which may be too small for mergekit."""
    if elects:
        return True
    if any(isinstance(weight, Gradient) for weight in weights):
        check_sum(weights)
        return True
    return abs(sum(plain_numbers(weights))) >= 1e-8


def _scaled(
    weights: list[Amount], factor: Amount, *, elects: bool, divides: bool
) -> dict[str, GivenAmount]:
    """The scale, the weights, and whether a sum is divided by theirs; equal ones are no weights."""
    one = weights[0] if len(set(weights)) == 1 else None
    if one is None:
        return {"scale": factor, "weight": tuple(weights), "normalize": yes_or_no(divides)}
    if divides:
        return {"scale": factor, **({"normalize": "yes"} if len(weights) > 1 else {})}
    if elects or isinstance(one, Gradient) or isinstance(factor, Gradient):
        no = {"normalize": "no"} if len(weights) > 1 or not elects else {}
        return {"scale": factor, "weight": one, **no}
    return {"scale": factor * one}


def _keeps(source: Ingredient) -> bool:
    density = source.amount("density")
    return isinstance(density, Gradient) or density > 0


def _summed(
    vectors: Sequence[Ingredient], weights: list[Amount], factor: Amount, *, divides: bool
) -> Mix:
    """Task arithmetic; a factor, and the weights' sum that divides, are within its weights."""
    if divides:
        total = sum(plain_numbers(weights))
        weights = [weight / total for weight in plain_numbers(weights)]
    if isinstance(factor, Gradient):
        weights = [times(factor, number) for number in plain_numbers(weights)]
    elif factor != 1:
        weights = [times(weight, factor) for weight in weights]
    one = weights[:1] if len(set(weights)) == 1 else weights
    return merged(vectors, "task_arithmetic", weight=tuple(one))


def _gammas(vectors: Sequence[Ingredient], densities: Sequence[Amount]) -> list[Amount]:
    """The shares of the largest that go: less where more than the density has to stay."""
    given = plain_numbers([vector.amount("gamma") for vector in vectors])
    pairs = zip(given, plain_numbers(densities), strict=True)
    return [min(gamma, 1.0 - density) for gamma, density in pairs]


def _epsilons(vectors: Sequence[Ingredient], densities: Sequence[Amount]) -> list[Amount]:
    given = plain_numbers([vector.amount("epsilon") for vector in vectors])
    for epsilon, density in zip(given, plain_numbers(densities), strict=True):
        if density < 1 and not (density + epsilon < 1 and density - epsilon > 0):
            raise Unsayable(f"density {density:g} ± epsilon {epsilon:g} isn't within (0, 1), which "
                            "mergekit refuses")  # fmt: skip
    return list(given)
