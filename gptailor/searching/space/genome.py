"""Vectors of genes, the choices that they close, and the conditions under which they count.

Strategies work on a `Genome`. An exported study contains a gene's `name`.
A gene's `subject` is the choice that it closes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field, ValidationError

from gptailor.checkpoint.files import fault_of
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
    """Return the genome in JSON, or a genome unchanged. Raises ValueError for other JSON."""
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
class GeneFact:
    """A truth about one gene or number.

    A "bit" is on. A pick has an "option", the `value`. A position of a window pick is "inside" the
    window. A stack has "room" for an item.
    """

    kind: Literal["bit", "option", "inside", "room"]
    number: int
    value: int = 0


@final
@dataclass(frozen=True, slots=True)
class Joint:
    """Conditions: all of them must hold, one of them must hold, or all must fail."""

    kind: Literal["every", "some", "none"]
    of: frozenset["Condition"]


Condition: TypeAlias = GeneFact | Joint

ALWAYS, NEVER = Joint("every", frozenset()), Joint("some", frozenset())
_OPPOSITES: dict[Condition, Condition] = {ALWAYS: NEVER, NEVER: ALWAYS}


def every(*conditions: Condition) -> Condition:
    """Return the condition that all conditions hold."""
    return _joined(conditions, ALWAYS, NEVER)


def some(conditions: Iterable[Condition]) -> Condition:
    """Return the condition that at least one condition holds."""
    return _joined(conditions, NEVER, ALWAYS)


def none(*conditions: Condition) -> Condition:
    """Return the condition that no condition holds."""
    any_one = some(conditions)
    return _OPPOSITES.get(any_one, Joint("none", frozenset([any_one])))


def _joined(conditions: Iterable[Condition], neutral: Joint, decisive: Joint) -> Condition:
    """Return the joint of the kind of `neutral`, in its shortest form."""
    parts = frozenset(conditions) - {neutral}
    if decisive in parts:
        return decisive
    return next(iter(parts)) if len(parts) == 1 else Joint(neutral.kind, parts)


def several(bits: Sequence[int]) -> Condition:
    """Return the condition that two or more of these bits are on."""
    facts = [GeneFact("bit", number) for number in bits]
    return some(every(fact, some(facts[:n])) for n, fact in enumerate(facts))


# ------------------------------------------------------------------------------------------- genes

LOG = 100
"""The least ratio of an interval's ends for a search by logarithm. The interval is above 0."""
DIGITS = 4
"""Digits of a real: of the interval's width, or of the number in a search by logarithm."""


@dataclass(frozen=True)
class Gene:
    """A part of a choice: its name, its subject, its position, and the condition it counts under.

    `at` is -1 without a position.
    """

    name: str
    subject: Subject
    at: int
    when: Condition


@final
@dataclass(frozen=True)
class Bit(Gene):
    """A yes or no. `group` is the number of its set, which has a limited number of bits on."""

    default: bool = False
    group: int = -1


@final
@dataclass(frozen=True)
class Pick(Gene):
    """A choice of one of several options."""

    options: tuple[Any, ...]
    labels: tuple[str, ...]
    default: int = 0

    @property
    def windows(self) -> bool:
        """Return whether the options are windows. Conditions then depend on positions inside."""
        return self.subject.role in ("window", "block")


@final
@dataclass(frozen=True)
class Real(Gene):
    """A number of an interval, as a share of the way through it."""

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


def genes_of(  # noqa: C901 (a case for each choice)
    site: Site, entry: str, at: int
) -> Sequence[Gene]:
    """Return the genes of a choice, not yet counting.

    A choice has one gene, or a bit for each position or member.
    """
    about, value = site.subject, site.value
    name = _name(entry, about)
    match value:
        case p.DropAny():
            group, least = int(site.place[1]), p.count_ends(value.count)[0]
            return [
                Bit(f"drop L{at}", about, at, NEVER, default=value.maybe and n < least, group=group)
                for n, at in enumerate(value.among)
            ]
        case p.Subset():
            first = next((model for model in value.any_of if model != "base"), value.any_of[0])
            members = [replace(about, model=model) for model in value.any_of]
            return [Bit(_name(entry, m), m, at, NEVER, default=m.model == first) for m in members]
        case p.Interval():
            return [Real(name, about, at, NEVER, *map(float, value.interval))]
        case p.DropWindow() | p.RepeatWindow():
            options: Sequence[Any] = list(windows_of(value.count, value.among))
            labels = list(map(window_words, options))
        case p.CountRange() | p.SizeRange():
            low, high = value.between
            options = value.sizes if isinstance(value, p.SizeRange) else range(low, high + 1)
            labels = list(map(str, options))
        case p.OneOfModels():
            options = labels = list(value.one_of)
        case p.OneOfMethods() | p.OneOfNumbers():
            options = value.one_of
            labels = [o.name if isinstance(o, p.MethodCall) else repr(o) for o in options]
            if len(set(labels)) < len(labels):  # numbers, or methods with other arguments
                labels = [f"{label} {v}" for v, label in enumerate(labels)]
        case _:
            return [Bit(name, about, at, NEVER)]
    default = 0
    if isinstance(value, p.OneOfModels):
        default = next((v for v, model in enumerate(value.one_of) if model != "base"), 0)
    elif isinstance(value, p.SizeRange) or about.used_as in p.CUTS:  # the largest size
        default = max(range(len(options)), key=options.__getitem__)
    return [Pick(name, about, at, NEVER, tuple(options), tuple(labels), default)]


def _name(entry: str, of: Subject) -> str:
    number = f" {of.number}" if of.role == "argument" and of.number else ""
    return _NAMES[of.role].format(entry=entry, of=of) + number
