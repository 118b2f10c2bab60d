"""Compositions: the base and each other model alone, uniform merges of all and of two."""

from dataclasses import dataclass
from itertools import chain, combinations
from typing import final

import numpy as np

from gptailor.plan.layers import undone
from gptailor.plan.plan import Plan
from gptailor.plan.walk import Subject, sources
from gptailor.search.cuts import Cut, drops_some, genes_of_cut, nested_cuts
from gptailor.search.space.decode import decode
from gptailor.search.space.genome import Bit, Genome, Pick, Real
from gptailor.search.space.space import Space
from gptailor.search.space.table import canonical

_SOURCES = ("take", "source")
"""Roles of choices whose options are models."""
_COEFFICIENTS = (("linear", "weight"), ("task_arithmetic", "weight"))
"""Numbers that make a merge the mean where each is a share of one."""
_PAIRS = 6
"""Uniform merges of two models, at most."""


@final
@dataclass(frozen=True)
class Composition:
    """What the layers are made of: these models, merged where they are several."""

    name: str
    models: tuple[str, ...]


def compositions(space: Space) -> list[Composition]:
    """The base, each other model alone, and uniform merges where the space has subsets."""
    of_bits = [bit.subject.model for bit in space.bits if bit.subject.role == "member"]
    members = [name for name in dict.fromkeys(of_bits) if name != "base"]
    picks = (pick.labels for pick in space.picks if pick.subject.role in _SOURCES)
    items = (_of_item(space, bit) for bit in space.bits if bit.subject.role == "item")
    names = dict.fromkeys(["base", *members, *chain(*picks, *items)])
    found = [Composition(name, (name,)) for name in names]
    if len(members) > 1:
        found.append(Composition("uniform merge", tuple(members)))
    pairs = list(combinations(members, 2)) if len(members) > 2 else []
    return found + [Composition(f"uniform merge of {a} and {b}", (a, b)) for a, b in pairs[:_PAIRS]]


def wholes(space: Space) -> dict[str, Plan]:
    """The closed plans whose block influence the starting plans go by.

    Nothing is dropped of them, and nothing comes again.
    """
    if not drops_some(space) and not any(bit.subject.role == "drop" for bit in space.bits):
        return {}
    found = {one.name: decode(space, composed(space, one)) for one in compositions(space)}
    return {n: undone(plan).model_copy(update={"repeats": ()}) for n, plan in found.items()}


def composed(space: Space, of: Composition, cut: Cut | None = None) -> Genome:
    """The space's genome that comes nearest to a composition, canonical, with a cut, or any."""
    cut = nested_cuts(space, np.zeros(space.layers))[0] if cut is None else cut
    dropped, windows = genes_of_cut(space, cut)
    bits = np.array([_bit(space, bit, of) for bit in space.bits], np.bool_) | dropped
    found = [windows.get(i, _pick(pick, of)) for i, pick in enumerate(space.picks)]
    picks = np.array(found, np.int32)
    reals = np.array([_real(real, of) for real in space.reals], np.float32)
    return canonical(space.table, Genome(bits, picks, reals))


# ------------------------------------------------------------------------------- what genes come to


def _of_item(space: Space, bit: Bit) -> list[str]:
    assert space.plan.stack is not None
    found = sources(space.plan.stack.items[bit.at].recipe)
    return [source.model for _, source in found if isinstance(source.model, str)]


def _bit(space: Space, bit: Bit, of: Composition) -> bool:
    match bit.subject.role:
        case "member":
            return bit.subject.model in of.models
        case "item":
            return set(_of_item(space, bit)) <= set(of.models)
        case "otherwise":
            return of.models != ("base",)
        case role:
            return role == "bridged"


def _pick(pick: Pick, of: Composition) -> int:
    if pick.subject.role in _SOURCES:
        wanted = [name for name in (*of.models, "base") if name in pick.labels]
        return pick.labels.index(wanted[0]) if wanted else 0
    numbers = [one for one in pick.options if isinstance(one, int | float)]
    if not numbers or len(numbers) < len(pick.options):
        return 0
    if (mean := _number(pick.subject, of)) is None:
        return pick.default
    return min(range(len(numbers)), key=lambda i: abs(numbers[i] - mean))


def _real(real: Real, of: Composition) -> float:
    wanted = _number(real.subject, of)
    return 0.5 if wanted is None else real.share(min(max(wanted, real.low), real.high))


def _number(about: Subject, of: Composition) -> float | None:
    """A coefficient that makes a merge the mean, a factor that changes nothing; None: who knows."""
    if (about.method, about.parameter) in _COEFFICIENTS:
        return 1 / len(of.models)
    factor = about.role == "factor" or (about.role, about.parameter) == ("let", "factor")
    return 1.0 if factor else None
