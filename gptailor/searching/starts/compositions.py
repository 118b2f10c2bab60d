"""Compositions of a space: the base, each other model alone, and uniform merges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, combinations
from math import inf
from typing import TypeAlias, final

import numpy as np

from gptailor.plan.faults import Place
from gptailor.plan.layers import undone
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
from gptailor.plan.sites import Subject, call_values, calls, names_in, recipes, sources
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
    merge of fixed sources. The base is left out if no coefficients give it. With `strengths` merges
    of subsets come by several coefficients too, as merges of fixed sources do.
    """
    uses = _uses(space)
    fixed = [use for of_gene in uses.values() for use in of_gene if use.fixed]
    weighted = dict.fromkeys(chain.from_iterable(use.models for use in fixed if use.own))
    of_bits = [bit.subject.model for bit in space.bits if bit.subject.role == "member"]
    members = [name for name in dict.fromkeys([*of_bits, *weighted]) if name != "base"]
    picks = (pick.labels for pick in space.picks if pick.subject.role in _SOURCES)
    items = (_of_item(space, bit) for bit in space.bits if bit.subject.role == "item")
    names = dict.fromkeys([*members, *chain(*picks, *items)])
    names.pop("base", None)
    result: list[Composition] = [ModelAlone(model=name) for name in names]
    shared = dict.fromkeys(chain.from_iterable(use.models for use in fixed if not use.own))
    merged = tuple(dict.fromkeys([*members, *(["base"] if "base" in weighted else []), *shared]))
    if len(merged) > 1:
        result.append(UniformMerge(models=merged, every=True))
        result += [
            UniformMerge(models=merged, every=True, coefficient=strength)
            for strength in _strengths(space, uses, subsets=strengths)
        ]
    pairs = list(combinations(members, 2)) if len(members) > 2 else []
    result += [UniformMerge(models=pair) for pair in pairs[:_PAIRS]]
    if _gives_base(space, uses):
        result.insert(0, BASE_ALONE)
    return _unlike(space, result)


def wholes(space: Space) -> dict[str, Plan]:
    """Return the closed plans for measuring block influence, by composition.

    The plans drop nothing and repeat nothing. The first plan is called `base`. A merge has one plan
    for all its coefficients.
    """
    if not drops_some(space) and not any(bit.subject.role == "drop" for bit in space.bits):
        return {}
    first, *further = compositions(space)
    by_name = {"base": first} | {
        composition_words(of): of
        for of in further
        if isinstance(of, ModelAlone) or of.coefficient is None
    }
    plans = {name: decode(space, composed(space, of)) for name, of in by_name.items()}
    return {n: undone(plan).model_copy(update={"repeats": ()}) for n, plan in plans.items()}


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
        windows.get(i, _pick(pick, uses.get((OneOfNumbers, i), ()), of))
        for i, pick in enumerate(space.picks)
    ]
    reals = [_real(real, uses.get((Interval, i), ()), of) for i, real in enumerate(space.reals)]
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

_Gene: TypeAlias = tuple[type[Interval] | type[OneOfNumbers], int]
"""A real or a pick, by its number."""


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

    def value(self, of: Composition) -> float:
        """Return the number that takes the recipe nearest to a composition."""
        models = composition_models(of)
        present = [name for name in self.models if name in models]
        if self.second:
            return 0.5 if len(present) != 1 else float(present[0] == self.own)
        if self.own and self.own not in models and (present or self.additive):
            return 0.0
        coefficient = of.coefficient if isinstance(of, UniformMerge) and self.additive else None
        if not self.fixed:
            return 1 / len(models) if coefficient is None else coefficient
        if not present:
            return 0.0 if self.additive else 1 / len(self.models)
        return 1 / len(present) if coefficient is None else coefficient


@lru_cache(maxsize=4)
def _uses(space: Space) -> Mapping[_Gene, Sequence[_Use]]:
    """Return the uses of each open number as a coefficient."""
    uses: dict[_Gene, list[_Use]] = {}
    for at, recipe in recipes(space.plan):
        for place, value, use in _recipe_uses(space.plan, recipe):
            for gene in _genes_of(space, (*at, *place), value):
                uses.setdefault(gene, []).append(use)
    return uses


def _recipe_uses(plan: Plan, recipe: Recipe) -> Iterator[tuple[Place, Value, _Use]]:
    """Yield the numbers of a recipe that are coefficients: place, number, use."""
    read = [source.model for _, source in sources(recipe)]
    models = tuple(name for name in read if isinstance(name, str))
    if len(models) < len(read) or len(set(models)) < len(models) or len(models) < 2:
        return
    if isinstance(recipe, Merge) and recipe.share is not None and _is_open(plan, recipe.share):
        yield ("share",), recipe.share, _Use(models, models[1], second=True, fixed=True)
    for inner, call in calls(recipe):
        values = [v for v in call_values(call) if v[1] in ("weight", "t")]
        several = isinstance(recipe, Subset)
        if not several and (len(inner) > 1 or not all(_is_open(plan, v) for _, _, v in values)):
            continue
        for argument, parameter, value in values:
            use = _Use(models, fixed=not several, additive=METHODS[call.name].needs_base)
            if (call.name, parameter) == ("slerp", "t"):
                use = replace(use, own=models[1], second=True)
            elif parameter != "weight":
                continue
            elif len(values) == len(models):
                use = replace(use, own=models[int(argument[-1])])
            elif (call.name, parameter) not in _COEFFICIENTS:
                continue
            yield (*inner, *argument), value, use


def _is_open(plan: Plan, value: Value) -> bool:
    """Return whether a number is open, and all knots of a curve."""
    match value:
        case Interval() | OneOfNumbers():
            return True
        case Named(named=name):
            return isinstance(plan.numbers.get(name), Interval | OneOfNumbers)
        case Curve(curve=knots):
            return all(_is_open(plan, knot) for knot in knots)
        case _:
            return False


def _genes_of(space: Space, place: Place, value: Value) -> Iterator[_Gene]:
    """Yield the genes that close a number: its own genes, or the genes of the names in it."""
    places: dict[Place, object] = {
        ("numbers", name): space.plan.numbers.get(name) for name in names_in(value)
    }
    for at, number in (places or {place: value}).items():
        if isinstance(number, Interval | OneOfNumbers):
            yield type(number), space.index[at][0]


def _strengths(
    space: Space, uses: Mapping[_Gene, Sequence[_Use]], *, subsets: bool
) -> Sequence[float]:
    """Return the coefficients of uniform merges that all their numbers can have, largest first."""
    genes = [
        gene
        for gene, of in uses.items()
        if any(use.additive and (use.fixed or subsets) for use in of)
    ]
    if not genes:
        return ()
    reals = [space.reals[number] for kind, number in genes if kind is Interval]
    options = [set(space.picks[number].options) for kind, number in genes if kind is OneOfNumbers]
    low = max((real.low for real in reals), default=-inf)
    high = min((real.high for real in reals), default=inf)
    common = set[object](_STRENGTHS) if not options else set.intersection(*options)
    within = [float(n) for n in common if isinstance(n, int | float) and low <= n <= high]
    if not within and not options and low < high:
        within = [low, high]
    return sorted(within, reverse=True)[:_MOST_STRENGTHS]


def _gives_base(space: Space, uses: Mapping[_Gene, Sequence[_Use]]) -> bool:
    """Return whether the numbers of merges with fixed sources can make them the base."""
    for (kind, number), of in uses.items():
        fixed = [use for use in of if use.fixed]
        coefficient = max((use.value(BASE_ALONE) for use in fixed), default=None)
        if coefficient is None:
            continue
        if not all(use.additive or "base" in use.models for use in fixed):
            return False
        if kind is OneOfNumbers and coefficient not in space.picks[number].options:
            return False
        real = space.reals[number] if kind is Interval else None
        if real is not None and not real.low <= coefficient <= real.high:
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
    numbers = [option for option in pick.options if isinstance(option, int | float)]
    if not numbers or len(numbers) < len(pick.options):
        return 0
    if (mean := _number(pick.subject, uses, of)) is None:
        return pick.default
    return min(range(len(numbers)), key=lambda i: abs(numbers[i] - mean))


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
