"""A space as flat parameters for other optimisers: categories, reals, whole numbers.

A bit is a category of two. The sizes of sets are repaired deterministically. With `slots` a set of
an exact size becomes this number of whole numbers. Each is the place of a member in the order of
layers, as in the paper's code; the next free member replaces a repeated one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import exact

Values: TypeAlias = dict[str, int | float]
"""A value for each parameter, by its name."""


@dataclass(frozen=True)
class Parameter:
    """A parameter: `whole` and `category` have the values 0 to `count` - 1, `real` 0 to 1.

    Parameters with one `set` have different values.
    """

    name: str
    kind: Literal["whole", "category", "real"]
    count: int = 0
    set: int = -1


class Parameters:
    """The parameters of a space, and the way from their values to genomes and back."""

    def __init__(self, space: Space, *, slots: bool = False) -> None:
        table = self.table = space.table
        self.members: dict[int, np.ndarray] = {}
        self.all: list[Parameter] = []
        for number, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
            members = np.flatnonzero(table.group == number)
            if slots and low == high and 0 < low < len(members):
                self.members[number] = members[np.argsort(table.at_bits[members], kind="stable")]
                self.all += [
                    Parameter(f"s{number}_{slot}", "whole", len(members), number)
                    for slot in range(int(low))
                ]
        self.bits = np.flatnonzero(~np.isin(table.group, list(self.members)))
        self.all += [Parameter(f"b{bit}", "category", 2) for bit in self.bits]
        options = map(int, table.options)
        self.all += [Parameter(f"p{i}", "category", count) for i, count in enumerate(options)]
        self.all += [Parameter(f"r{i}", "real") for i in range(len(table.at_reals))]

    def described(self) -> list[dict[str, Any]]:
        """Return the parameters as JSON values."""
        return [asdict(parameter) for parameter in self.all]

    def genome(self, values: Mapping[str, Any]) -> Genome:
        """Return the genome of the values, with sets repaired."""
        table = self.table
        bits = np.zeros(len(table.group), np.bool_)
        for bit in self.bits:
            bits[bit] = bool(values[f"b{bit}"])
        priority = np.random.default_rng(0).random(len(bits))  # the same repair each time
        bits = exact(table, np.where(bits, 1.0, -1.0) + priority / 2)
        for number, members in self.members.items():
            bits[members] = False
            for slot in range(int(table.low[number])):
                place = int(values[f"s{number}_{slot}"])
                while bits[members[place]]:
                    place = (place + 1) % len(members)
                bits[members[place]] = True
        picks = [int(values[f"p{i}"]) for i in range(len(table.options))]
        reals = [float(values[f"r{i}"]) for i in range(len(table.at_reals))]
        return Genome(bits, np.array(picks, np.int32), np.array(reals, np.float32))

    def values(self, genome: Genome) -> Values:
        """Return the values of one genome."""
        found: Values = {}
        for number, members in self.members.items():
            places = np.flatnonzero(genome.bits[members])
            found |= {f"s{number}_{slot}": int(place) for slot, place in enumerate(places)}
        found |= {f"b{bit}": int(genome.bits[bit]) for bit in self.bits}
        found |= {f"p{i}": int(pick) for i, pick in enumerate(genome.picks)}
        found |= {f"r{i}": float(real) for i, real in enumerate(genome.reals)}
        return {parameter.name: found[parameter.name] for parameter in self.all}
