"""What readers of mergekit's methods have in hand: numbers and gradients, sources, and a `Mix`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from gptailor.convert.note import Unsayable
from gptailor.plan.registry import METHODS


@final
@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over a slice's layers, linear between them."""

    knots: tuple[float, ...]

    def at(self, t: float) -> float:
        """The number at a place from 0 to 1."""
        scaled = t * (len(self.knots) - 1)
        low = int(scaled)
        high = min(len(self.knots) - 1, low + 1)
        share = scaled - low
        return (1 - share) * self.knots[low] + share * self.knots[high]


Amount = float | Gradient
ParameterValue = Amount | bool | None


@final
class NeedsNumbers(Exception):  # noqa: N818 (it asks for something)
    """A recipe can't be read from gradients, but can from the numbers at a layer."""


GivenAmount = Amount | tuple[Amount, ...] | str


@final
@dataclass(frozen=True)
class Mix:
    """A recipe without layer numbers: models as they are (no method), or merged by one."""

    models: tuple[str, ...]
    method: str = ""
    arguments: tuple[tuple[str, GivenAmount], ...] = ()


@final
@dataclass(frozen=True)
class Ingredient:
    """A source's tensor, with what its parameters are there."""

    model: str
    is_base: bool
    given: Mapping[str, ParameterValue]

    def amount(self, name: str) -> Amount:
        """A parameter that must be there; a density of 1 keeps all."""
        value = self.given[name]
        if value is None:
            raise Unsayable(f"'{self.model}' has no '{name}', which mergekit demands")
        if isinstance(value, Gradient):
            return value
        return min(float(value), 1.0) if name == "density" else float(value)


@final
@dataclass(frozen=True)
class Mixture:
    """What mergekit makes a tensor of: sources with their parameters, a method with its own."""

    method: str
    sources: Sequence[Ingredient]
    shared: Mapping[str, ParameterValue]

    @property
    def base(self) -> Ingredient:
        """The base's tensor."""
        found = next((source for source in self.sources if source.is_base), None)
        if found is None:
            raise Unsayable(f"'{self.method}' needs its base_model among the sources, in mergekit "
                            "too: name one of them")  # fmt: skip
        return found

    @property
    def others(self) -> list[Ingredient]:
        """The sources besides the base."""
        return [source for source in self.sources if not source.is_base]

    def amount(self, name: str) -> Amount:
        """A shared parameter that must be there."""
        value = self.shared[name]
        if value is None:
            raise Unsayable(f"'{self.method}' has no '{name}', which mergekit demands")
        return value if isinstance(value, Gradient) else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A shared flag, or the method's default."""
        value = self.shared.get(name)
        return default if value is None else bool(value)


def take(source: Ingredient) -> Mix:
    """A source as it is."""
    return Mix((source.model,))


_SAID = ("density", "gamma", "rescale", "t", "epsilon")
"""What is written out though a method has it anyway; of an epsilon, those of `della` alone."""


def merged(sources: Sequence[Ingredient], method: str, **arguments: GivenAmount) -> Mix:
    """Sources merged by a method, given what it hasn't anyway, and what says how much is merged."""
    said = _SAID if method.startswith("della") else _SAID[:-1]
    given = {
        name: value
        for name, value in arguments.items()
        if name in said or value != METHODS[method].argument({}, name)
    }
    return Mix(tuple(source.model for source in sources), method, tuple(given.items()))


def plain_numbers(amounts: Sequence[Amount]) -> list[float]:
    """Amounts as numbers, where arithmetic is done with them."""
    if any(isinstance(amount, Gradient) for amount in amounts):
        raise NeedsNumbers
    return [float(amount) for amount in amounts if not isinstance(amount, Gradient)]


def times(amount: Amount, factor: float) -> Amount:
    """A number, or all of a gradient's, multiplied."""
    if isinstance(amount, Gradient):
        return Gradient(tuple(knot * factor for knot in amount.knots))
    return amount * factor


def one_for_all(amounts: Sequence[Amount]) -> GivenAmount:
    """One number where all sources have the same, else one for each."""
    return amounts[0] if len(set(amounts)) == 1 else tuple(amounts)


def check_sum(weights: Sequence[Amount]) -> None:
    """Refuse weights that sum to 0; where gradients might, the numbers of each layer are asked."""
    least = [min(weight.knots) if isinstance(weight, Gradient) else weight for weight in weights]
    if any(isinstance(weight, Gradient) for weight in weights):
        if sum(least) <= 0:
            raise NeedsNumbers
    elif abs(sum(least)) < 1e-8:
        raise Unsayable("the weights sum to 0, by which mergekit divides")


def yes_or_no(flag: bool) -> str:
    """A flag in the language's words."""
    return "yes" if flag else "no"


def check_count(mixture: Mixture, count: int) -> None:
    """Refuse another number of sources."""
    if len(mixture.sources) != count:
        what = {1: "one source", 2: "two sources"}[count]
        raise Unsayable(f"'{mixture.method}' takes {what}, and there are {len(mixture.sources)}")
