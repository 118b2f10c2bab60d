"""mergekit's merge methods as recipes: one tensor's sources and parameters in, a recipe out."""

from collections.abc import Callable
from dataclasses import dataclass

from gptailor.convert.mergekit.mixture import Mixture, at_the_base, merged
from gptailor.convert.mergekit.vectors import (
    breadcrumbs_recipe,
    dare_recipe,
    task_arithmetic_recipe,
    ties_recipe,
    with_one_source,
)
from gptailor.convert.note import Unsayable
from gptailor.plan.plan import Recipe, Take


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


def _passthrough(mixture: Mixture) -> Recipe:
    if len(mixture.sources) != 1:
        raise Unsayable(f"'passthrough' takes one source, and there are {len(mixture.sources)}")
    (source,) = mixture.sources
    scale = source.given["scale"]
    if scale is None or scale == 1:
        return Take(take=source.layer)
    return merged([source], "linear", weights=(float(scale),))


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
        return merged(sources, "linear")
    return merged(sources, "linear", weights=kept)


def _slerp(mixture: Mixture) -> Recipe:
    t = mixture.number("t")
    if len(mixture.sources) != 2:
        raise Unsayable(f"'slerp' takes two sources, and there are {len(mixture.sources)}")
    if not 0 <= t <= 1:
        raise Unsayable(f"t = {t!r} goes beyond the sources; slerp's t lies in [0, 1]")
    first, second = mixture.base, mixture.others[0]
    if t in (0, 1):
        return Take(take=(second if t else first).layer)
    return merged([first, second], "slerp", t=t)


def _karcher(mixture: Mixture) -> Recipe:
    if len(mixture.sources) == 1:
        return Take(take=mixture.sources[0].layer)
    return merged(mixture.sources, "karcher")


def _model_stock(mixture: Mixture) -> Recipe:
    if mixture.flag("filter_wise", False):
        raise Unsayable("'model_stock' with filter_wise has an angle for each row; ours has one")
    if len(mixture.others) < 2:
        raise Unsayable("'model_stock' takes two sources or more besides the base")
    mixture.base  # noqa: B018 (it must be there)
    return merged(at_the_base(mixture, mixture.others), "model_stock")


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
    "task_arithmetic": MergekitMethod(("weight", "density"), _TASK, task_arithmetic_recipe),
    "ties": MergekitMethod(("weight", "density"), _TASK, ties_recipe, _COUNTS),
    "dare_linear": MergekitMethod(("weight", "density"), _TASK, dare_recipe, _DRAWS),
    "dare_ties": MergekitMethod(("weight", "density"), _TASK, with_one_source(dare_recipe), _DRAWS),
    "breadcrumbs": MergekitMethod(
        ("weight", "density", "gamma"), _TASK, breadcrumbs_recipe, _COUNTS
    ),
    "breadcrumbs_ties": MergekitMethod(
        ("weight", "density", "gamma"), _TASK, with_one_source(breadcrumbs_recipe), _COUNTS
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
