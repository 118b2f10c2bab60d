"""Vectors of genes, the choices that they close, and the conditions under which they count.

Strategies work on a `Genome`. An exported study contains a gene's `name`.
A gene's `subject` is the choice that it closes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field, ValidationError

from gptailor.checkpoint.records import fault_of
from gptailor.plan import plan as p
from gptailor.plan.plan import BuiltClosed, Several
from gptailor.plan.sites import Role, Site, Subject
from gptailor.plan.windows import window_words, windows_of

Bits = Bool[ndarray, "*n b"]


@final
class Genome(NamedTuple):
    """Genes of three kinds: of one genome, or of a population of `n`, with a leading axis.

    `bits` are positions that a `drop any` takes, statements with `maybe`, and members of an `any
    of`. `picks` are numbers of options, or of windows. `reals` lie in 0..1 and are shares of an
    interval.
    """

    bits: Bits
    picks: Int[ndarray, "*n c"]
    reals: Float[ndarray, "*n r"]


def genome_to_json(genome: Genome) -> dict[str, Any]:
    """Return a genome as JSON, exact and short."""
    return {
        "bits": "".join("01"[int(bit)] for bit in np.asarray(genome.bits)),
        "picks": [int(pick) for pick in np.asarray(genome.picks)],
        "reals": [float(real) for real in np.asarray(genome.reals)],
    }


@final
class _GenomeJson(BuiltClosed):
    """A genome: bits as `0` and `1`, the numbers of options, and reals in 0..1."""

    bits: Annotated[str, Field(pattern="^[01]*$")]
    picks: Several[Annotated[int, Field(ge=0, le=10**6)]]
    reals: Several[Annotated[float, Field(ge=0, le=1)]]


def genome_from_json(note: Any) -> Genome:
    """Return the genome in JSON, or a genome as it is. Raises ValueError for other JSON."""
    if isinstance(note, Genome):
        return note
    try:
        record = _GenomeJson.model_validate(note)
    except ValidationError as error:
        raise ValueError(fault_of(error)) from None
    return Genome(
        np.array([bit == "1" for bit in record.bits], np.bool_),
        np.array(record.picks, np.int32),
        np.array(record.reals, np.float32),
    )


@final
class Active(NamedTuple):
    """Masks of the genes that count. All other genes may have any value."""

    bits: Bits
    picks: Bool[ndarray, "*n c"]
    reals: Bool[ndarray, "*n r"]


# -------------------------------------------------------------------------------------- conditions


@final
@dataclass(frozen=True, slots=True)
class Literal:
    """A truth about one gene or number: it equals `value`, or has the property `kind`."""

    kind: str  # "bit", "option", "several", "inside", "room" or "wide"
    number: int
    value: int = 1


Clause: TypeAlias = frozenset[Literal]
Condition: TypeAlias = frozenset[Clause]

ALWAYS: Condition = frozenset([frozenset()])
NEVER: Condition = frozenset()


def fact(kind: str, number: int, value: int = 1) -> Condition:
    """Return the condition that one literal holds.

    A "bit" is on (1) or off (0). A pick has an "option", the `value`. Two or more members of a
    subset are chosen ("several"). A position of a window pick is "inside" the window (1) or not
    (0). A stack has "room" for an item.
    """
    return frozenset([frozenset([Literal(kind, number, value)])])


def every(*conditions: Condition) -> Condition:
    """Return the condition that all conditions hold."""
    joint: Condition = ALWAYS
    for condition in conditions:
        joined = (a | b for a in joint for b in condition)
        joint = _least(clause for clause in joined if not _contradicts(clause))
    return joint


def some(conditions: Iterable[Condition]) -> Condition:
    """Return the condition that at least one condition holds."""
    return _least(clause for condition in conditions for clause in condition)


def _contradicts(clause: Clause) -> bool:
    values: dict[tuple[str, int], int] = {}
    return any(
        values.setdefault((literal.kind, literal.number), literal.value) != literal.value
        for literal in clause
    )


def _least(clauses: Iterable[Clause]) -> Condition:
    """Return clauses without repeats. An empty clause makes the condition always true."""
    unique = set(clauses)
    return ALWAYS if frozenset() in unique else frozenset(unique)


# ------------------------------------------------------------------------------------------- genes

LOG = 100
"""The least ratio of an interval's ends for a search by logarithm. The interval is above 0."""
DIGITS = 4
"""Digits of a real: of the interval's width, or of the number in a search by logarithm."""


@final
@dataclass(frozen=True)
class Bit:
    """A yes or no. `group` is the number of its set, which has a limited number of bits on."""

    name: str
    subject: Subject
    at: int
    when: Condition
    default: bool = False
    group: int = -1


@final
@dataclass(frozen=True)
class Pick:
    """A choice of one of several options."""

    name: str
    subject: Subject
    at: int
    when: Condition
    options: tuple[object, ...]
    labels: tuple[str, ...]
    default: int = 0

    @property
    def windows(self) -> bool:
        """Return whether the options are windows. Conditions then depend on positions inside."""
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
        """Return whether equal steps are equal ratios."""
        return self.low > 0 and self.high >= LOG * self.low

    def value(self, share: float) -> float:
        """Return the number at a share, with few digits and never outside the interval."""
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
        """Return how far through the interval a number is."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max((math.log(value) - low) / (high - low), 0.0), 1.0)
        half = self.high / 2 - self.low / 2  # the width itself may overflow
        return min(max((value / 2 - self.low / 2) / half, 0.0), 1.0) if half > 0 else 0.0


Gene: TypeAlias = Bit | Pick | Real


@final
@dataclass(frozen=True)
class Genes:
    """All genes of a space, and their relations.

    `sizes` has the least and the greatest number of bits that are on, for each set. `subsets` has
    the members' bits of each `any of`. `inside` has a window pick and a position for each position
    that the pick's windows may contain. `items` has the bit of each `maybe` item of a stack. `room`
    is the greatest number of such items. `merged` has, for each subset, its position and the
    condition that two members or more are chosen.
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
    "vocabulary": "{entry}",
    "width": "{entry}",
    "experts": "{entry}",
    "let": "let {entry}",
}
"""Names of genes. Journals contain them as a study's parameters, so they must not change."""


def genes_of(site: Site, entry: str, at: int) -> Sequence[Gene]:
    """Return the genes of a choice, not yet counting.

    A choice has one gene, or a bit for each position or member.
    """
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


_Alone = p.Interval | p.OneOfModels | p.OneOfMethods | p.OneOfNumbers | p.CountRange | p.SizeRange
"""Choices that one pick or one real closes."""


def _gene_of(name: str, about: Subject, at: int, value: _Alone) -> Gene:
    if isinstance(value, p.CountRange | p.SizeRange):
        low, high = value.between
        several = tuple(value.sizes if isinstance(value, p.SizeRange) else range(low, high + 1))
        default = len(several) - 1 if isinstance(value, p.SizeRange) else 0  # the largest size
        return Pick(name, about, at, NEVER, several, tuple(map(str, several)), default)
    if isinstance(value, p.Interval):
        return Real(name, about, at, NEVER, *map(float, value.interval))
    if isinstance(value, p.OneOfModels):
        other = next((v for v, model in enumerate(value.one_of) if model != "base"), 0)
        return Pick(name, about, at, NEVER, value.one_of, value.one_of, other)
    default = 0
    if isinstance(value, p.OneOfNumbers) and about.used_as in p.CUTS:  # the largest size
        default = max(range(len(value.one_of)), key=value.one_of.__getitem__)
    labels = [o.name if isinstance(o, p.MethodCall) else repr(o) for o in value.one_of]
    if len(set(labels)) < len(labels):  # numbers, or methods with other arguments
        labels = [f"{label} {v}" for v, label in enumerate(labels)]
    return Pick(name, about, at, NEVER, value.one_of, tuple(labels), default)


def _name(entry: str, of: Subject) -> str:
    number = f" {of.number}" if of.role == "argument" and of.number else ""
    return _NAMES[of.role].format(entry=entry, of=of) + number
