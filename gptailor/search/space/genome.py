"""One vector of genes, what each gene is, and when it says anything.

A `Genome` is what strategies see. A gene's `name` is the name that a study's journal knows it by,
and is never read back: what a gene is about is its `subject`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, final

from jaxtyping import Bool, Float, Int
from numpy import ndarray

from gptailor.plan import plan as p
from gptailor.plan.sites import Role, Site, Subject
from gptailor.plan.windows import window_words, windows_of

Bits = Bool[ndarray, "*n b"]
Picks = Int[ndarray, "*n c"]
Reals = Float[ndarray, "*n r"]


@final
class Genome(NamedTuple):
    """Genes of three kinds, or of `n` genomes at once: a population has a leading axis.

    `bits` are positions that a `drop any` takes, statements with `maybe`, and members of an `any
    of`; `picks` are numbers of options, windows too; `reals` lie in 0..1 and stand for an interval.
    """

    bits: Bits
    picks: Picks
    reals: Reals


@final
class Active(NamedTuple):
    """Which genes of a genome say anything; the others may have any value."""

    bits: Bits
    picks: Bool[ndarray, "*n c"]
    reals: Bool[ndarray, "*n r"]


# -------------------------------------------------------------------------------------- conditions


@final
@dataclass(frozen=True, slots=True)
class Literal:
    """One truth: a bit that is `value`, a pick that is `value`, or `kind` of that number."""

    kind: str  # "bit", "option", "several", "inside", "room" or "wide"
    number: int
    value: int = 1


Clause: TypeAlias = frozenset[Literal]
Condition: TypeAlias = frozenset[Clause]

ALWAYS: Condition = frozenset([frozenset()])
NEVER: Condition = frozenset()


def bit(number: int, on: bool = True) -> Condition:
    """That bit is on, or off."""
    return frozenset([frozenset([Literal("bit", number, int(on))])])


def option(number: int, value: int) -> Condition:
    """That pick is that option."""
    return frozenset([frozenset([Literal("option", number, value)])])


def several(subset: int) -> Condition:
    """Two or more members of that subset are chosen."""
    return frozenset([frozenset([Literal("several", subset)])])


def inside(number: int, on: bool = True) -> Condition:
    """The position of that number among those of windows is in its window, or isn't."""
    return frozenset([frozenset([Literal("inside", number, int(on))])])


def room(item: int) -> Condition:
    """There is room for that item of a stack."""
    return frozenset([frozenset([Literal("room", item)])])


def every(*conditions: Condition) -> Condition:
    """All of them hold."""
    found: Condition = ALWAYS
    for one in conditions:
        joined = (a | b for a in found for b in one)
        found = _least(clause for clause in joined if not _contradicts(clause))
    return found


def some(conditions: Iterable[Condition]) -> Condition:
    """One of them holds."""
    return _least(clause for one in conditions for clause in one)


def _contradicts(clause: Clause) -> bool:
    seen: dict[tuple[str, int], int] = {}
    return any(seen.setdefault((one.kind, one.number), one.value) != one.value for one in clause)


def _least(clauses: Iterable[Clause]) -> Condition:
    """Without clauses that ask for more than another."""
    found = set(clauses)
    return ALWAYS if frozenset() in found else frozenset(found)


# ------------------------------------------------------------------------------------------- genes

LOG = 100
"""An interval above 0 whose ends are that many times apart is searched by its logarithm."""
DIGITS = 4
"""Digits of a real: of the interval's width, or of the number where it goes by its logarithm."""


@final
@dataclass(frozen=True)
class Bit:
    """Yes or no. `group` is the number of the set of which so many are on."""

    name: str
    subject: Subject
    at: int
    when: Condition
    default: bool = False
    group: int = -1


@final
@dataclass(frozen=True)
class Pick:
    """One of several options."""

    name: str
    subject: Subject
    at: int
    when: Condition
    options: tuple[object, ...]
    labels: tuple[str, ...]
    default: int = 0

    @property
    def windows(self) -> bool:
        """Whether its options are windows: what counts is which positions are inside."""
        return self.subject.role in ("window", "block")


@final
@dataclass(frozen=True)
class Real:
    """A number of an interval, as a share of the way through it."""

    name: str
    subject: Subject
    at: int
    when: Condition
    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether equal steps are equal ratios."""
        return self.low > 0 and self.high >= LOG * self.low

    def value(self, share: float) -> float:
        """The number there, with few digits and never outside the interval."""
        share = min(max(float(share), 0.0), 1.0)
        if self.log:
            power = math.log(self.low) * (1 - share) + math.log(self.high) * share
            number = float(f"{math.exp(power):.{DIGITS}g}")
        else:
            width = self.high - self.low
            number = self.low * (1 - share) + self.high * share
            if math.isfinite(width) and width > 0:
                number = round(number, DIGITS - math.ceil(math.log10(width)))
        return min(max(number, self.low), self.high)

    def share(self, value: float) -> float:
        """How far through the interval a number is."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max((math.log(value) - low) / (high - low), 0.0), 1.0)
        half = self.high / 2 - self.low / 2  # the width itself may overflow
        return min(max((value / 2 - self.low / 2) / half, 0.0), 1.0) if half > 0 else 0.0


Gene: TypeAlias = Bit | Pick | Real


@final
@dataclass(frozen=True)
class Genes:
    """All genes of a space, and how they hang together.

    `sizes` says of each set of bits how many are on, at least and at most, `subsets` has the
    members' bits of each `any of`, `inside` a pick of windows and a position for each that these
    may take, `items` the bit of each `maybe` item of a stack, for which there is that much `room`.
    `merged` says of each subset, by its position, when two members or more are chosen.
    """

    bits: tuple[Bit, ...]
    picks: tuple[Pick, ...]
    reals: tuple[Real, ...]
    sizes: tuple[tuple[int, int], ...]
    subsets: tuple[tuple[int, ...], ...]
    inside: tuple[tuple[int, int], ...]
    items: tuple[int, ...]
    room: int
    merged: tuple[tuple[int, Condition], ...]


# ------------------------------------------------------------------------------ from sites to genes

_NAMES: dict[Role, str] = {
    "drop": "{entry}",
    "cut": "{entry} at all",
    "window": "{entry}",
    "block": "{entry}",
    "repeated": "{entry} at all",
    "times": "{entry} times",
    "otherwise": "{entry} otherwise",
    "scaled": "{entry} at all",
    "bridged": "{entry} at all",
    "item": "{entry} is in",
    "member": "{entry} has {of.model}",
    "take": "{entry} takes",
    "source": "{entry} source {of.number}",
    "method": "{entry} by",
    "argument": "{entry} {of.method} {of.parameter}",
    "share": "{entry} share",
    "factor": "{entry} by",
    "ridge": "{entry} ridge",
    "let": "let {entry}",
}
"""Genes are a study's parameters: journals know them by these names, which stay as they are."""


def genes_of(site: Site, entry: str, at: int) -> Sequence[Gene]:
    """The genes of a choice: one, or a bit for each position or member; none of them counts yet."""
    about, value = site.subject, site.value
    name = _name(entry, about)
    if isinstance(value, p.DropAny):
        group, least = int(site.place[1]), p.count_ends(value.count)[0]
        return [
            Bit(f"drop L{at}", about, at, NEVER, default=value.maybe and n < least, group=group)
            for n, at in enumerate(value.among)
        ]
    if isinstance(value, p.DropWindow | p.RepeatWindow):
        options = tuple(windows_of(value.count, value.among))
        labels = tuple(map(window_words, options))
        return [Pick(name, about, at, NEVER, options, labels)]
    if isinstance(value, p.Subset):
        first = next((model for model in value.any_of if model != "base"), value.any_of[0])
        members = [replace(about, model=model) for model in value.any_of]
        return [Bit(_name(entry, m), m, at, NEVER, default=m.model == first) for m in members]
    if isinstance(value, _Alone):
        return [_gene_of(name, about, at, value)]
    return [Bit(name, about, at, NEVER)]


_Alone = p.Interval | p.OneOfModels | p.OneOfMethods | p.OneOfNumbers | p.CountRange
"""What is closed by one pick or one real."""


def _gene_of(name: str, about: Subject, at: int, value: _Alone) -> Gene:
    if isinstance(value, p.CountRange):
        low, high = value.between
        counts = tuple(range(low, high + 1))
        return Pick(name, about, at, NEVER, counts, tuple(map(str, counts)))
    if isinstance(value, p.Interval):
        return Real(name, about, at, NEVER, *map(float, value.interval))
    if isinstance(value, p.OneOfModels):
        other = next((v for v, model in enumerate(value.one_of) if model != "base"), 0)
        return Pick(name, about, at, NEVER, value.one_of, value.one_of, other)
    return Pick(name, about, at, NEVER, value.one_of, _labels(value.one_of))


def _name(entry: str, of: Subject) -> str:
    number = f" {of.number}" if of.role == "argument" and of.number else ""
    return _NAMES[of.role].format(entry=entry, of=of) + number


def _labels(options: Sequence[object]) -> tuple[str, ...]:
    """What tells options apart: a number, or a method, with its place where it stands twice."""
    found = [one.name if isinstance(one, p.MethodCall) else repr(one) for one in options]
    if len(set(found)) < len(found):
        found = [f"{label} {v}" for v, label in enumerate(found)]
    return tuple(found)
