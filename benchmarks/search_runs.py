"""Searches of the real family: gptailor's strategies and peers, from the same starting plans."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.search_family_scores import Family, samples
from benchmarks.search_peers import EvoPress, Factory, Ours, Searcher, peers
from benchmarks.search_texts import SEEN
from gptailor.searching.space.genome import Genome

STAGES = ((8, 1 / SEEN), (2, 1.0))
"""Numbers of EvoPress' offspring on one text of each domain, and on all texts."""


@dataclass
class Told:
    """Results of a run: genomes with their shares, values and costs."""

    family: Family
    genomes: list[Genome] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, population: Genome, shares: Sequence[float], values: Sequence[float]) -> None:
        """Add trials."""
        self.genomes += [Genome(*genes) for genes in zip(*population, strict=True)]
        self.shares += list(map(float, shares))
        self.values += list(map(float, values))

    @property
    def cost(self) -> float:
        """Return the cost in evaluations at full fidelity."""
        return sum(map(self.family.cost, self.shares))

    def best(self, within: float) -> tuple[float, Genome]:
        """Return the best value at full fidelity within a cost, and its genome."""
        spent = np.cumsum([self.family.cost(share) for share in self.shares])
        full = [
            (value, i)
            for i, value in enumerate(self.values)
            if self.shares[i] == 1 and spent[i] <= within + 1e-6 and np.isfinite(value)
        ]
        value, i = min(full)
        return value, self.genomes[i]


def run(family: Family, name: str, seed: int, budget: float, smac: str | None = None) -> Told:
    """Run a searcher by its name until the budget is spent; starting plans count.

    Peers without fidelities receive only the starting plans with a full evaluation.
    """
    factories: dict[str, Factory] = peers({"SMAC3": smac}, int(budget)) | {
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
        told.add(Genome(*map(np.asarray, population)), shares.tolist(), values.tolist())
        _tell(family, searcher, population, values, shares)
    return told


def _tell(
    family: Family, searcher: Searcher, population: Genome, values: np.ndarray, shares: np.ndarray
) -> None:
    """Tell values as a search does: as the lost share of the base's score on these texts."""
    uncut = np.array([family.uncut[samples(share)] for share in shares])
    searcher.tell(population, values / uncut - 1, shares)
