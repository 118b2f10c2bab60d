"""Compositions and cuts as genomes: of any space the one that comes nearest to what is wanted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import final

import jax
import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.plan import Plan
from gptailor.plan.walk import Subject, sources
from gptailor.search.space.decode import decode
from gptailor.search.space.genome import Bit, Genome, Pick, Real
from gptailor.search.space.space import Space
from gptailor.search.space.table import settled

_COEFFICIENTS = (("linear", "weights"), ("task_arithmetic", "scales"))
"""Numbers that make a merge the mean where each is a share of one."""
_PAIRS = 6
"""Uniform merges of two models, at most."""

Scores = Float[np.ndarray, " layers"]
"""How much each position is to be dropped."""


@final
@dataclass(frozen=True)
class Composition:
    """What the layers are made of: these models, merged where they are several."""

    name: str
    models: tuple[str, ...]


def compositions(space: Space) -> list[Composition]:
    """The base, each other model alone, and uniform merges where the space has subsets."""
    members = _others(bit.subject.model for bit in space.bits if bit.subject.role == "member")
    found = [Composition(name, (name,)) for name in ("base", *_others([*members, *_named(space)]))]
    if len(members) > 1:
        found.append(Composition("uniform merge", tuple(members)))
    pairs = list(combinations(members, 2)) if len(members) > 2 else []
    return found + [Composition(f"uniform merge of {a} and {b}", (a, b)) for a, b in pairs[:_PAIRS]]


def wholes(space: Space) -> dict[str, Plan]:
    """The closed plans whose block influence the starting plans go by: nothing is dropped."""
    if not any(bit.subject.role == "drop" for bit in space.bits):
        return {}
    found = {one.name: decode(space, composed(space, one)) for one in compositions(space)}
    bare = {"drops": (), "bridges": ()}
    return {name: plan.model_copy(update=bare) for name, plan in found.items()}


def composed(space: Space, of: Composition, scores: Scores | None = None, maybe: int = 0) -> Genome:
    """The space's genome that comes nearest to a composition, canonical.

    Of each set the positions with the highest scores are dropped, and `maybe` of those that may be.
    """
    scores = np.zeros(space.layers) if scores is None else scores
    bits = np.array([_bit(space, bit, of) for bit in space.bits], np.bool_)
    bits |= dropped(space, scores, maybe)
    picks = np.array([_pick(pick, of) for pick in space.picks], np.int32)
    reals = np.array([_real(real, of) for real in space.reals], np.float32)
    return Genome(*jax.device_get(settled(space.table, Genome(bits, picks, reals))))


# ------------------------------------------------------------------------------- what genes come to


def _named(space: Space) -> Iterator[str]:
    """Models that are an option, or an item's."""
    for pick in space.picks:
        if pick.subject.role in ("take", "source"):
            yield from pick.labels
    for bit in space.bits:
        if bit.subject.role == "item":
            yield from _of_item(space, bit)


def _others(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name != "base"]


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
    if pick.subject.role in ("take", "source"):
        wanted = [name for name in (*of.models, "base") if name in pick.labels]
        return pick.labels.index(wanted[0]) if wanted else 0
    numbers = [one for one in pick.options if isinstance(one, int | float)]
    if not numbers or len(numbers) < len(pick.options):
        return 0
    wanted_number = _number(pick.subject, of)
    if wanted_number is None:
        return pick.default
    return min(range(len(numbers)), key=lambda i: abs(numbers[i] - wanted_number))


def _real(real: Real, of: Composition) -> float:
    wanted = _number(real.subject, of)
    return 0.5 if wanted is None else real.share(min(max(wanted, real.low), real.high))


def _number(about: Subject, of: Composition) -> float | None:
    """A coefficient that makes a merge the mean, a factor that changes nothing; None: who knows."""
    if (about.method, about.parameter) in _COEFFICIENTS:
        return 1 / len(of.models)
    return 1.0 if about.role == "factor" else None


def dropped(space: Space, scores: Scores, maybe: int) -> Bool[np.ndarray, " b"]:
    """The bits of the positions with the highest scores, of each set as many as it has."""
    found = np.zeros(len(space.bits), np.bool_)
    drops = [(i, bit) for i, bit in enumerate(space.bits) if bit.subject.role == "drop"]
    for group, count in (*enumerate(map(int, space.table.sizes)), (-1, maybe)):
        theirs = [(-float(scores[bit.at]), i) for i, bit in drops if bit.group == group]
        found[[i for _, i in sorted(theirs)[:count]]] = True
    return found
