"""Starting plans: what people do without a search, as genomes of any space, stage by stage.

Compositions are the base and each other model alone, uniform merges of all and of two. What is
dropped of them goes by block influence (ShortGPT, arXiv 2403.03853), as the best contiguous window
(arXiv 2403.17887), or as greedy removal took it of the base (SLEB, arXiv 2402.09025).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.layers import undone
from gptailor.plan.plan import Drop, Plan
from gptailor.plan.walk import Subject, sources
from gptailor.search.run.schedule import Start, ToldStart
from gptailor.search.space.decode import decode, without_unused
from gptailor.search.space.genome import Bit, Genome, Pick, Real
from gptailor.search.space.space import Space
from gptailor.search.space.table import canonical

_SOURCES = ("take", "source")
"""Roles of choices whose options are models."""
_COEFFICIENTS = (("linear", "weight"), ("task_arithmetic", "weight"))
"""Numbers that make a merge the mean where each is a share of one."""
_PAIRS = 6
"""Uniform merges of two models, at most."""

Scores = Float[np.ndarray, " layers"]
"""How much each position is to be dropped."""

_MOST_ALONE = 5
"""Models alone that are evaluated in full, at most."""
_MERGES = 2
"""Uniform merges that are evaluated in full."""
_WINDOWS = 6.0
"""Evaluations at full fidelity that windows may cost together."""
_BEST_WINDOWS = 2
"""Windows that are evaluated in full."""
_MAYBE = (1 / 8, 1 / 4)
"""The shares of the positions with `maybe drop` that are dropped, where no number is said."""
_LEAST = 1 / 16
"""The smallest share of all samples that chooses between plans."""
_COST = 4.0
"""Evaluations at full fidelity that greedy removal may cost."""
_CANDIDATES = 8
"""Layers of which one leaves, at most."""


# ------------------------------------------------------------------------------------ compositions


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
    """The closed plans whose block influence the starting plans go by: nothing is dropped."""
    if not any(bit.subject.role == "drop" for bit in space.bits):
        return {}
    found = {one.name: decode(space, composed(space, one)) for one in compositions(space)}
    return {name: undone(plan) for name, plan in found.items()}


def composed(space: Space, of: Composition, scores: Scores | None = None, maybe: int = 0) -> Genome:
    """The space's genome that comes nearest to a composition, canonical.

    Of each set the positions with the highest scores are dropped, and `maybe` of those that may be.
    """
    scores = np.zeros(space.layers) if scores is None else scores
    bits = np.array([_bit(space, bit, of) for bit in space.bits], np.bool_)
    bits |= dropped(space, scores, maybe)
    picks = np.array([_pick(pick, of) for pick in space.picks], np.int32)
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


def dropped(space: Space, scores: Scores, maybe: int) -> Bool[np.ndarray, " b"]:
    """The bits of the positions with the highest scores, of each set as many as it has."""
    found = np.zeros(len(space.bits), np.bool_)
    drops = [(i, bit) for i, bit in enumerate(space.bits) if bit.subject.role == "drop"]
    for group, count in (*enumerate(map(int, space.table.low)), (-1, maybe)):
        theirs = [(-float(scores[bit.at]), i) for i, bit in drops if bit.group == group]
        found[[i for _, i in sorted(theirs)[:count]]] = True
    return found


# ---------------------------------------------------------------------------------- the stages


@final
@dataclass(frozen=True, eq=False)
class Starts:
    """The starting plans of a space.

    `influence` is the block influence of each layer, by the name of a composition in `wholes`;
    without it layers in the middle are dropped first. `removal` are the positions that
    `greedy_removal` takes of the base. `cheapest` is the least share of all samples that a trial
    may use.
    """

    space: Space
    influence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    removal: Sequence[int] = ()
    cheapest: float = 1.0
    _made: dict[tuple[str, bytes], Genome] = field(default_factory=dict, init=False, repr=False)

    def next(self, told: Sequence[ToldStart]) -> list[Start]:
        """The next stage, given what came of all stages before it, in their order; [] at the end.

        It depends on nothing else, and on losses by their order alone.
        """
        known: dict[str, list[ToldStart]] = {}
        count = 0
        for name, wanted in self._stages(known):
            if len(told) < count + len(wanted):
                return wanted
            known[name] = list(told[count : count + len(wanted)])
            count += len(wanted)
        return []

    def _stages(self, known: Mapping[str, list[ToldStart]]) -> Iterator[tuple[str, list[Start]]]:
        """The stages and their plans, each made when those before it are known."""
        saves = self._low <= 1 / 2  # all compositions on few samples first
        yield "glances", [self._alone(one, self._low) for one in self._all] if saves else []
        yield "compositions", self._compositions(known["glances"])
        if not self._size:
            yield "maybe", self._maybe(known["compositions"])
            return
        best = self._best(known["compositions"])
        windows = self._windows(best)
        tried = [(f"window {self._cut(w)} on {best.name}", w) for w in windows]
        yield "windows", [self._start(name, best, w, self._low) for name, w in tried]
        yield "best windows", self._best_windows(best, windows, known["windows"])
        yield "removed", self._removed(best)

    def _compositions(self, glances: Sequence[ToldStart]) -> list[Start]:
        order = ranked(glances) if glances else range(len(self._all))
        ordered = [self._all[i] for i in order]
        alone = [one for one in ordered if len(one.models) == 1]
        kept = {one.name for one in alone[: _MOST_ALONE - 1]} | {"base"}
        merges = [one for one in ordered if len(one.models) > 1][:_MERGES]
        found = [one for one in self._all if one.name in kept or one in merges]
        return [self._alone(one, 1.0) for one in found]

    def _windows(self, of: Composition) -> list[Scores]:
        """Windows, different ones; where they would cost too much, those of least influence."""
        found: dict[bytes, Scores] = {}
        size = self._size
        positions = np.arange(self.space.layers)
        for first in range(self.space.layers - size + 1):
            scores = -np.abs(positions - (first + (size - 1) / 2))
            found.setdefault(dropped(self.space, scores, 0).tobytes(), scores)
        kept = self._scores(of)
        chosen = sorted(found.values(), key=lambda cut: -float(kept[self._dropped(cut)].sum()))
        chosen = chosen[: int(_WINDOWS / self._low)]
        return [one for one in found.values() if any(one is other for other in chosen)]

    def _best_windows(
        self, best: Composition, windows: Sequence[Scores], told: Sequence[ToldStart]
    ) -> list[Start]:
        """The best windows in full, and the best one on the base."""
        order = ranked(told)[:_BEST_WINDOWS] if self._low < 1 else ranked(told)[:1]
        found = []
        for n, i in enumerate(order):
            which = f"window {self._cut(windows[i])}" if n else "best window"
            found.append(self._start(f"{which} on {best.name}", best, windows[i], 1.0))
        if best.models != ("base",) and order:
            base = self._all[0]
            found.append(self._start("best window on base", base, windows[order[0]], 1.0))
        return found

    def _removed(self, best: Composition) -> list[Start]:
        if not self.removal:
            return []
        scores = np.full(self.space.layers, -np.inf)
        scores[list(self.removal)] = -np.arange(len(self.removal), dtype=np.float64)
        both = dict.fromkeys([self._all[0], best])
        return [self._start(f"greedy removal on {one.name}", one, scores, 1.0) for one in both]

    def _maybe(self, told: Sequence[ToldStart]) -> list[Start]:
        """The best composition without some of the layers that may be dropped."""
        most = sum(bit.subject.role == "drop" for bit in self.space.bits)
        best = self._best(told)
        counts = dict.fromkeys(max(1, round(share * most)) for share in _MAYBE) if most else {}
        names = {count: f"block influence on {best.name}, {count} layers" for count in counts}
        genomes = (composed(self.space, best, self._scores(best), count) for count in names)
        return [Start(name, one, 1.0) for name, one in zip(names.values(), genomes, strict=True)]

    # -------------------------------------------------------------------------------- what they use

    @cached_property
    def _all(self) -> list[Composition]:
        return compositions(self.space)

    @property
    def _size(self) -> int:
        return int(sum(self.space.table.low))

    @property
    def _low(self) -> float:
        return min(max(self.cheapest, _LEAST), 1.0)

    def _best(self, told: Sequence[ToldStart]) -> Composition:
        name = told[ranked(told)[0]].name
        return next(one for one in self._all if self._said(one) == name)

    def _said(self, of: Composition) -> str:
        return f"block influence on {of.name}" if self._size else of.name

    def _alone(self, of: Composition, share: float) -> Start:
        return self._start(self._said(of), of, self._scores(of), share)

    def _start(self, name: str, of: Composition, scores: Scores, share: float) -> Start:
        key = of.name, dropped(self.space, scores, 0).tobytes()
        if key not in self._made:
            self._made[key] = composed(self.space, of, scores)
        return Start(name, self._made[key], share)

    def _scores(self, of: Composition) -> Scores:
        influence = self.influence.get(of.name, self.influence.get("base"))
        if influence is None:
            middle = (self.space.layers - 1) * 2 / 3  # what is cut where nothing is known
            influence = [abs(position - middle) for position in range(self.space.layers)]
        return np.array([-one for one in influence], np.float64)

    def _dropped(self, scores: Scores) -> list[int]:
        on = dropped(self.space, scores, 0)
        return sorted(bit.at for bit, yes in zip(self.space.bits, on, strict=True) if yes)

    def _cut(self, scores: Scores) -> str:
        at = self._dropped(scores)
        if len(at) > 1 and at[-1] - at[0] == len(at) - 1:
            return f"L{at[0]}..L{at[-1]}"
        return ", ".join(f"L{position}" for position in at)


def ranked(told: Sequence[ToldStart]) -> list[int]:
    """Their numbers, the best first: by the mean of the ranks that they have by each objective.

    So they stay where they are when losses are measured otherwise. Failures come last.
    """
    losses = np.array([one.losses for one in told], np.float64).reshape(len(told), -1)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ranks = (losses[:, None] > losses[None]).sum(axis=1).mean(axis=-1)
    return [int(i) for i in np.argsort(ranks, kind="stable")]


# ---------------------------------------------------------------------------------- greedy removal


def candidates(space: Space, cheapest: float) -> int:
    """Layers that each round of greedy removal tries; 0 where that would cost too much.

    All rounds together cost this many times `cheapest` times the number of dropped layers.
    """
    size = int(sum(space.table.low))
    found = min(_CANDIDATES, int(_COST / (size * max(cheapest, _LEAST)))) if size else 0
    return found if found > 1 else 0


def greedy_removal(
    space: Space,
    whole: Plan,
    influence: Sequence[float],
    judge: Callable[[Sequence[Plan]], Sequence[float]],
    cheapest: float,
) -> tuple[int, ...]:
    """The positions that leave one after another, each time the one that costs least (SLEB).

    `whole` is the plan of which they are removed, `judge` gives losses of plans, on the `cheapest`
    share of the samples (NaN for a failure). Tried are the layers of least influence. On the way
    plans have fewer layers dropped than the space allows, so that these are no trials of it.
    """
    sets = {bit.at: bit.group for bit in space.bits if bit.group >= 0}
    room = [int(size) for size in space.table.low]
    width = candidates(space, cheapest)
    taken: list[int] = []
    while width and sum(room):
        there = [p for p, group in sets.items() if p not in taken and room[group]]
        tried = sorted(there, key=lambda p: (influence[p], p))[:width]
        losses = judge([_without(whole, [*taken, position]) for position in tried])
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        taken.append(tried[int(np.argmin(losses))])
        room[sets[taken[-1]]] -= 1
    return tuple(taken)


def _without(plan: Plan, positions: Sequence[int]) -> Plan:
    layers = tuple(layer for layer in plan.layers if layer.position not in positions)
    drops = tuple(Drop(position=position) for position in positions)
    return without_unused(plan.model_copy(update={"layers": layers, "drops": drops}))
