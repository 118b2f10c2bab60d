"""Compositions of a space: the base, each other model alone, and uniform merges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from math import inf
from typing import final

import numpy as np

from gptailor.plan.faults import Place
from gptailor.plan.plan import (
    Curve,
    Interval,
    Merge,
    Named,
    OneOfNumbers,
    Plan,
    Recipe,
    Subset,
    Value,
)
from gptailor.plan.registry import METHODS
from gptailor.plan.resolved import undone
from gptailor.plan.sites import Subject, call_values, calls, recipes, sites, sources
from gptailor.searching.run.origin import (
    Composition,
    ModelAlone,
    UniformMerge,
    composition_models,
    composition_words,
)
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Bit, Genome, Pick, Real
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical
from gptailor.searching.starts.cuts import Cut, drops_some, genes_of_cut, nested_cuts

BASE_ALONE = ModelAlone(model="base")
_SOURCES = ("take", "source")
"""Roles of choices between models."""
_COEFFICIENTS = (("linear", "weight"), ("task_arithmetic", "weight"))
"""Numbers that make a merge the mean if they are equal and sum up to 1."""
_PAIRS = 6
"""Uniform merges of two models, at most."""
_MOST_STRENGTHS = 3
_STRENGTHS = (1.0, 0.6, 0.3)
"""Further coefficients of uniform merges, if a merge has fixed sources."""


def compositions(space: Space, *, strengths: bool = False) -> list[Composition]:
    """Return the compositions that the space can choose between, the base first.

    These are the models of its subsets and picks, and the models with their own coefficients in a
    merge of fixed sources. Compositions that no coefficients of the space give are left out. With
    `strengths`, or if the mean is left out, merges of subsets come by several coefficients too, as
    merges of fixed sources do.
    """
    fixed = [use for of_gene in _uses(space).values() for use in of_gene if use.fixed]
    weighted = dict.fromkeys(chain.from_iterable(use.models for use in fixed if use.own))
    of_bits = [bit.subject.model for bit in space.bits if bit.subject.role == "member"]
    members = [name for name in dict.fromkeys([*of_bits, *weighted]) if name != "base"]
    picks = (pick.labels for pick in space.picks if pick.subject.role in _SOURCES)
    items = (_of_item(space, bit) for bit in space.bits if bit.subject.role == "item")
    names = dict.fromkeys([*members, *chain(*picks, *items)])
    result: list[Composition] = [BASE_ALONE]
    result += [ModelAlone(model=name) for name in names if name != "base"]
    shared = chain.from_iterable(use.models for use in fixed if not use.own)
    merged = tuple(dict.fromkeys([*members, *(n for n in weighted if n == "base"), *shared]))
    if len(merged) > 1:
        mean = UniformMerge(models=merged, every=True)
        subsets = strengths or not _gives(space, mean)
        each = _strengths(space, subsets=subsets)
        result += [mean, *(mean.model_copy(update={"coefficient": of}) for of in each)]
    pairs = list(combinations(members, 2)) if len(members) > 2 else []
    result += [UniformMerge(models=pair) for pair in pairs[:_PAIRS]]
    return _unlike(space, [of for of in result if _gives(space, of)])


def wholes(space: Space) -> dict[str, Plan]:
    """Return the closed plans for measuring block influence, by composition.

    The plans drop nothing and repeat nothing. The first plan is called `base`. A merge has one plan
    for all its coefficients.
    """
    if not drops_some(space) and not any(bit.subject.role == "drop" for bit in space.bits):
        return {}
    first, *further = compositions(space) or [BASE_ALONE]
    by_name = {"base": first}
    for of in further:
        by_name.setdefault(whole_name(of), of)
    plans = {name: decode(space, composed(space, of)) for name, of in by_name.items()}
    return {n: undone(plan).model_copy(update={"repeats": ()}) for n, plan in plans.items()}


def whole_name(of: Composition) -> str:
    """Return the name of a composition in `wholes`; a merge's name has no coefficient."""
    return composition_words(
        UniformMerge(models=of.models, every=of.every) if isinstance(of, UniformMerge) else of
    )


def composed(
    space: Space, of: Composition, cut: Cut | None = None, table: Table | None = None
) -> Genome:
    """Return the genome that is nearest to a composition, with `cut` or any cut.

    It is canonical by the `table`, else by the space's own.
    """
    cut = nested_cuts(space, np.zeros(space.layers))[0] if cut is None else cut
    dropped, windows = genes_of_cut(space, cut)
    uses, models = _uses(space), composition_models(of)
    bits = np.array([_bit(space, bit, models) for bit in space.bits], np.bool_) | dropped
    picks = [
        windows.get(i, _pick(pick, uses.get(pick.name, ()), of))
        for i, pick in enumerate(space.picks)
    ]
    reals = [_real(real, uses.get(real.name, ()), of) for real in space.reals]
    genome = Genome(bits, np.array(picks, np.int32), np.array(reals, np.float32))
    return canonical(table or space.table, genome)


def _unlike(space: Space, all_compositions: Sequence[Composition]) -> list[Composition]:
    """Leave out merges by a coefficient that repeat the genome of an earlier composition."""
    keys: set[bytes] = set()
    kept: list[Composition] = []
    for of in all_compositions:
        key = b"".join(genes.tobytes() for genes in map(np.asarray, composed(space, of)))
        if isinstance(of, ModelAlone) or of.coefficient is None or key not in keys:
            kept.append(of)
        keys.add(key)
    return kept or [BASE_ALONE]


# --------------------------------------------------------------------- the coefficients of merges


@final
@dataclass(frozen=True)
class _Use:
    """A use of an open number: the coefficient of one of a recipe's models, or of all models.

    `own` is the model. It is empty if the number is the coefficient of all models. With `second`
    the number is the share of the second of two models. `fixed` means that the recipe always reads
    these models and has an open number for each. With `additive` the merge is the base if all
    coefficients are 0.
    """

    models: tuple[str, ...]
    own: str = ""
    second: bool = False
    fixed: bool = False
    additive: bool = False

    def is_read(self, models: Sequence[str]) -> bool:
        """Return whether the number has an effect in a plan of these models alone."""
        merged = sum(name in models for name in self.models) > 1
        return self.fixed or (merged and (not self.own or self.own in models))

    def value(self, of: Composition) -> float:
        """Return the number that takes the recipe nearest to a composition."""
        models = composition_models(of)
        present = [name for name in self.models if name in models]
        if self.second:
            return 0.5 if len(present) != 1 else float(present[0] == self.own)
        if self.own and self.own not in models and (present or self.additive):
            return 0.0
        if self.fixed and not present:
            return 0.0 if self.additive else 1 / len(self.models)
        coefficient = of.coefficient if isinstance(of, UniformMerge) and self.additive else None
        mean = 1 / len(present if self.fixed else models)
        return mean if coefficient is None else coefficient


@lru_cache(maxsize=4)
def _uses(space: Space) -> Mapping[str, Sequence[_Use]]:
    """Return the uses of each open number as a coefficient, by its gene's name."""
    genes = {
        site.place: (space.reals if isinstance(site.value, Interval) else space.picks)[number].name
        for site in sites(space.plan)
        if isinstance(site.value, Interval | OneOfNumbers)
        for number in space.index.get(site.place, ())
    }
    uses: dict[str, list[_Use]] = {}
    for at, recipe in recipes(space.plan):
        for names, use in _recipe_uses(recipe, at, genes):
            for name in filter(None, names):
                uses.setdefault(name, []).append(use)
    return uses


def _recipe_uses(
    recipe: Recipe, at: Place, genes: Mapping[Place, str]
) -> Iterator[tuple[list[str], _Use]]:
    """Yield the uses of a recipe's numbers as coefficients, each with the names of its genes."""
    read = [source.model for _, source in sources(recipe)]
    models = tuple(name for name in read if isinstance(name, str))
    if len(models) < len(read) or len(set(models)) < len(models) or len(models) < 2:
        return
    if isinstance(recipe, Merge) and all(names := _names(genes, (*at, "share"), recipe.share)):
        yield names, _Use(models, models[1], second=True, fixed=True)
    fixed = not isinstance(recipe, Subset)
    for inner, call in calls(recipe):
        values = [
            (argument, parameter, _names(genes, (*at, *inner, *argument), value))
            for argument, parameter, value in call_values(call)
            if parameter in ("weight", "t")
        ]
        if fixed and (len(inner) > 1 or not all(all(names) for _, _, names in values)):
            continue
        additive = METHODS[call.name].needs_base
        for argument, parameter, names in values:
            second = (call.name, parameter) == ("slerp", "t")
            own = models[1] if second else ""
            if parameter == "weight" and len(values) == len(models):
                own = models[int(argument[-1])]
            if own or (call.name, parameter) in _COEFFICIENTS:
                yield names, _Use(models, own, second, fixed, additive)


def _names(genes: Mapping[Place, str], place: Place, value: Value | None) -> list[str]:
    """Return the names of the genes that close a number or a curve's knots; "" for a fixed one."""
    parts = value.curve if isinstance(value, Curve) else (value,)
    places = (("numbers", part.named) if isinstance(part, Named) else place for part in parts)
    return [genes.get(at, "") for at in places]


def _strengths(space: Space, *, subsets: bool) -> Sequence[float]:
    """Return the coefficients of uniform merges that all their numbers can have, largest first."""
    strong = {
        name
        for name, of in _uses(space).items()
        if any(use.additive and (use.fixed or subsets) for use in of)
    }
    reals = [real for real in space.reals if real.name in strong]
    options = [set(pick.options) for pick in space.picks if pick.name in strong]
    if not strong:
        return ()
    low = max((real.low for real in reals), default=-inf)
    high = min((real.high for real in reals), default=inf)
    common = set[object](_STRENGTHS) if not options else set.intersection(*options)
    within = [float(n) for n in common if isinstance(n, int | float) and low <= n <= high]
    if not within and not options and low < high:
        within = [low, high]
    return sorted(within, reverse=True)[:_MOST_STRENGTHS]


def _gives(space: Space, of: Composition) -> bool:
    """Return whether the coefficients of the space can make a composition."""
    models = composition_models(of)
    genes: tuple[Pick | Real, ...] = (*space.picks, *space.reals)
    for gene in genes:
        uses = _uses(space).get(gene.name, ())
        read = [use for use in uses if use.is_read(models)]
        if not read:
            continue
        number = max(use.value(of) for use in uses)
        can = number in gene.options if isinstance(gene, Pick) else gene.low <= number <= gene.high
        alike = len(models) > 1 or all(use.value(of) == number for use in read)
        of_base = of != BASE_ALONE or all(use.additive or "base" in use.models for use in read)
        if not (can and alike and of_base):
            return False
    return True


# ------------------------------------------------------------------------------ the values of genes


def _of_item(space: Space, bit: Bit) -> list[str]:
    assert space.plan.stack is not None
    read = sources(space.plan.stack.items[bit.at].recipe)
    return [source.model for _, source in read if isinstance(source.model, str)]


def _bit(space: Space, bit: Bit, models: Sequence[str]) -> bool:
    match bit.subject.role:
        case "member":
            return bit.subject.model in models
        case "item":
            return set(_of_item(space, bit)) <= set(models)
        case "otherwise":
            return tuple(models) != ("base",)
        case role:
            return role == "bridged"


def _pick(pick: Pick, uses: Sequence[_Use], of: Composition) -> int:
    if pick.subject.role in _SOURCES:
        names = [name for name in (*composition_models(of), "base") if name in pick.labels]
        return pick.labels.index(names[0]) if names else 0
    if (mean := _number(pick.subject, uses, of)) is None:
        return pick.default
    return min(range(len(pick.options)), key=lambda i: abs(pick.options[i] - mean))


def _real(real: Real, uses: Sequence[_Use], of: Composition) -> float:
    number = _number(real.subject, uses, of)
    return 0.5 if number is None else real.share(min(max(number, real.low), real.high))


def _number(about: Subject, uses: Sequence[_Use], of: Composition) -> float | None:
    """Return a coefficient, or the factor that changes nothing; None for all other numbers."""
    if uses:
        return max(use.value(of) for use in uses)
    if (about.method, about.parameter) in _COEFFICIENTS:
        return 1 / len(composition_models(of))
    factor = about.role == "factor" or (about.role, about.parameter) == ("let", "factor")
    return 1.0 if factor else None
