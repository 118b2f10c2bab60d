"""What became of one evaluation of one plan: `Trial`, and what was wanted of it: `Wanted`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np

from gptailor.search.genome import Genome

TrialOutcome: TypeAlias = tuple[float, float] | str
"""A value with its standard error, or why there is none."""

STARTS, RANDOM, SEARCH, FINAL, BESIDE = "start", "random", "search", "final", "beside"
"""What trials are for: starting plans; a few random ones; what a strategy asks; the best ones once
more, bridged; random search beside, for comparison only."""


class Wanted(NamedTuple):
    """An evaluation to be made, and who asked for it.

    `origin` is a starting plan's name or the strategy's. Within its `phase` it is told apart by the
    number of the `ask` and its place in that, its `slot`; `asked_after` trials had been told then.
    """

    phase: str
    ask: int
    slot: int
    origin: str
    genome: Genome
    samples: int
    bridged: bool
    asked_after: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from all others of the search."""
        return self.phase, self.ask, self.slot


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """A told evaluation. `number` counts from 0, in the order of telling.

    `plan` is the digest of the plan's canonical text, `share` that of the full samples. `values`
    are in the user's own directions, one for each objective; None after a `failure`, whose reason
    that is. `same_as` is the trial whose plan this is too: then nothing was evaluated.
    """

    number: int
    wanted: Wanted
    plan: str
    share: float
    values: tuple[float, ...] | None = None
    stderrs: tuple[float, ...] | None = None
    failure: str | None = None
    seconds: float = 0.0
    same_as: int | None = None

    @property
    def cost(self) -> float:
        """What it takes of the budget, in evaluations at full fidelity."""
        return 0.0 if self.same_as is not None else self.share

    @property
    def full(self) -> bool:
        """Whether all samples were used."""
        return self.share == 1.0


def genome_to_json(genome: Genome) -> dict[str, Any]:
    """A genome as JSON holds it: exact, and short."""
    return {
        "bits": "".join("01"[int(bit)] for bit in np.asarray(genome.bits)),
        "picks": [int(pick) for pick in np.asarray(genome.picks)],
        "reals": [float(real) for real in np.asarray(genome.reals)],
    }


def genome_from_json(said: Mapping[str, Any]) -> Genome:
    """The same genome. Raises KeyError, TypeError or ValueError for what is none."""
    return Genome(
        np.array([{"0": False, "1": True}[bit] for bit in said["bits"]], np.bool_),
        np.array(said["picks"], np.int32),
        np.array(said["reals"], np.float32),
    )


def as_numpy(genome: Genome) -> Genome:
    """The genome in the memory of numpy, of the dtypes that records have."""
    return Genome(
        np.asarray(genome.bits, np.bool_),
        np.asarray(genome.picks, np.int32),
        np.asarray(genome.reals, np.float32),
    )


def at(population: Genome, index: int) -> Genome:
    """One genome of a population."""
    return Genome(*(np.asarray(genes)[index] for genes in population))


def read_outcomes(
    outcomes: Sequence[TrialOutcome],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str | None]:
    """Values and errors, or the reason of the first objective without a score.

    An infinite value is none: nothing could be compared with it.
    """
    values, stderrs = [], []
    for outcome in outcomes:
        if isinstance(outcome, str):
            return None, None, outcome
        value, stderr = outcome
        if not math.isfinite(value):
            return None, None, f"the score is {value}"
        values.append(float(value))
        stderrs.append(float(stderr))
    return tuple(values), tuple(stderrs), None
