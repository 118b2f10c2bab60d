"""Searches of the real family: gptailor's strategies and peers, from the same starting plans."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.search_family_scores import Family, samples
from benchmarks.search_peers import EvoPress, Factory, Ours, Searcher, peers
from benchmarks.search_texts import SEEN
from gptailor.search.run.schedule import Start, ToldStart
from gptailor.search.space.genome import Genome

STAGES = ((8, 1 / SEEN), (2, 1.0))
"""EvoPress' offspring on one text of each domain, and the best of them on all."""


@dataclass
class Told:
    """What a run was told: genomes with their shares and values, and what each cost."""

    family: Family
    genomes: list[Genome] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, population: Genome, shares: Sequence[float], values: Sequence[float]) -> None:
        """Trials more."""
        self.genomes += [Genome(*genes) for genes in zip(*population, strict=True)]
        self.shares += list(map(float, shares))
        self.values += list(map(float, values))

    @property
    def cost(self) -> float:
        """Evaluations at full fidelity."""
        return sum(map(self.family.cost, self.shares))

    def best(self, within: float) -> tuple[float, Genome]:
        """The best value at full fidelity within a cost, and its genome."""
        spent = np.cumsum([self.family.cost(share) for share in self.shares])
        full = [
            (value, i)
            for i, value in enumerate(self.values)
            if self.shares[i] == 1 and spent[i] <= within + 1e-6 and np.isfinite(value)
        ]
        value, i = min(full)
        return value, self.genomes[i]

    def ranked(self, most: int) -> list[Genome]:
        """The best of those at full fidelity, different ones."""
        order = np.argsort(self.values, kind="stable")
        full = [int(i) for i in order if self.shares[i] == 1]
        first = {self.values[i]: i for i in reversed(full)}
        return [self.genomes[first[value]] for value in sorted(first)[:most]]


def run(family: Family, name: str, seed: int, budget: float, smac: str | None = None) -> Told:
    """A way to search by its name, until the budget is spent; starting plans count.

    Peers that know no fidelities are told the starting plans that were evaluated in full.
    """
    factories: dict[str, Factory] = peers(smac, int(budget)) | {
        "EvoPress": lambda space, seed: EvoPress(space, seed, STAGES[0][0], STAGES)
    }
    searcher = factories[name](family.space, seed)
    if isinstance(searcher, Ours):
        searcher.measured(family.prior)
    told = Told(family)
    for one in family.told:
        population = Genome(*(genes[None] for genes in one.genome))
        told.add(population, [one.share], one.losses)
        if one.share == 1 or isinstance(searcher, Ours):
            _tell(family, searcher, population, np.array(one.losses), np.array([one.share]))
    while told.cost < budget:
        population, asked = searcher.ask()
        shares = np.array([samples(float(share)) / SEEN for share in asked])
        values = np.zeros(len(shares))
        for share in np.unique(shares):
            there = shares == share
            part = Genome(*(np.asarray(genes)[there] for genes in population))
            values[there] = family.observed(part, share)
        told.add(Genome(*map(np.asarray, population)), shares, values)
        _tell(family, searcher, population, values, shares)
    return told


def _tell(
    family: Family, searcher: Searcher, population: Genome, values: np.ndarray, shares: np.ndarray
) -> None:
    """As a search measures: the share of the base's score, on as many texts, that is lost."""
    uncut = np.array([family.uncut[samples(share)] for share in shares])
    searcher.tell(population, values / uncut - 1, shares)


class Bridged(Family):
    """The same landscape, each trial bridged that is at full fidelity; glances are not."""

    def __init__(self, family: Family, tokens: int, factor: float) -> None:
        vars(self).update(vars(family))  # its models, scores and starting plans are shared
        self.tokens, self.factor = tokens, factor
        vars(self).pop("told", None)
        self.unbridged = family.told

    @cached_property
    def told(self) -> list[ToldStart]:
        """The starting plans, those at full fidelity bridged."""
        return [self._start(Start(*one[:3])) for one in self.unbridged]

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Bridged scores where all texts are used."""
        if share < 1:
            return super().observed(population, share)
        return self.scores(self.plans(population), f"{SEEN} bridged {self.tokens}")

    def cost(self, share: float) -> float:
        """A bridge costs as much as `factor` trials more."""
        return super().cost(share) + (self.factor if share == 1 else 0)


def finalists(  # noqa: PLR0913 (a search, and how it is bridged)
    family: Family, name: str, seed: int, budget: float, *, tokens: int, factor: float, most: int
) -> Genome:
    """The best of a search's finalists once they are bridged, at the same cost in all."""
    told = run(family, name, seed, budget - most * (1 + factor))
    best = told.ranked(most)
    population = Genome(*(np.stack(genes) for genes in zip(*best, strict=True)))
    values = family.scores(family.plans(population), f"{SEEN} bridged {tokens}")
    return best[int(np.nanargmin(values))]
