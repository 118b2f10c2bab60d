"""A strategy with a model: draws of a linear model, each minimised over many small changes.

For each genome of an ask, coefficients are drawn from the posterior (Thompson, 1933). They screen
thousands of mutants of the best trials. So an uncertain genome is tried as often as it may be the
best genome. The model is in `posterior`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from numpy import ndarray

from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, keys_of, uniform
from gptailor.searching.space.table import (
    Table,
    active,
    allowed,
    canonical,
    coarse,
    features,
    gap_features,
    sample,
)
from gptailor.searching.strategies import moves as m
from gptailor.searching.strategies import strategy
from gptailor.searching.strategies.posterior import (
    Coefficients,
    Observations,
    Sharing,
    draw,
    products,
    sharing,
)

_FRESH = 16
"""The number of mutants for each random genome."""
_SWAPS = 4096
"""The most swaps that are screened at once."""
_TURNS = 32
"""The number of parents. The first parents of the elite come more than once."""

_FAR = 1e3
"""The loss that is added to genomes of another size than the wanted one."""
_WORST = 4.0
"""The greatest absolute target. It limits the effect of cuts that ruin a model."""


def targets(fitness: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    """Return fitness with mean 0 and deviation 1 over the trials.

    The distance behind the best trial counts by its logarithm. Its unit is the distance from the
    best trial to the median. A failure counts as the worst trial.
    """
    valid = np.isfinite(fitness)
    if not valid.any():
        return np.zeros(len(fitness))
    behind = fitness - fitness[valid].min()
    behind = np.log1p(behind / max(float(np.median(behind[valid])), 1e-9))
    behind = np.where(valid, behind, behind[valid].max())
    scaled = (behind - behind.mean()) / max(float(behind.std()), 1e-6)
    return np.asarray(np.clip(scaled, -_WORST, _WORST))


def swapped(table: Table, parents: Genome, most: int) -> Genome:
    """Return genomes with one bit of a set off and another bit of it on.

    The genomes are all such genomes, or `most` of them, evenly spread.
    """
    bits, group = parents.bits, table.group
    mates = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    may = active(table, parents).bits
    row, off, on = np.nonzero((bits & may)[:, :, None] & ~bits[:, None, :] & mates)
    kept = np.linspace(0, len(row) - 1, min(most, len(row))).astype(np.int64)
    row, off, on = row[kept], off[kept], on[kept]
    mutants = m.some_rows(parents, row)
    mutants.bits[np.arange(len(row)), off] = False
    mutants.bits[np.arange(len(row)), on] = True
    return mutants


@final
class _Scored(NamedTuple):
    """Genomes with their features, and their score in each draw of the model."""

    genomes: Genome
    effects: Float[ndarray, "n f"]
    scores: Float[ndarray, "n d"]


def _open_size(table: Table, genomes: Genome) -> Int[ndarray, " n"]:
    """Return the number of chosen members of the sets with an open size."""
    inside = np.isin(table.group, table.ranged)
    return np.asarray(np.asarray(genomes.bits)[:, inside].sum(axis=1))


def _wanted_sizes(table: Table, key: Key, count: int) -> Int[ndarray, " d"] | None:
    """Return a size for each genome of an ask, spread over all sizes; None without open sizes.

    So each size has its own competition, as in MAP-Elites (arXiv 1504.04909).
    """
    if not len(table.ranged):
        return None
    low, high = table.low[table.ranged].sum(), table.high[table.ranged].sum()
    places = (uniform(key, (1,)) + np.arange(count) / count) % 1
    return np.asarray(low + np.floor(places * (high - low + 1)), np.int64)


@final
@dataclass(frozen=True)
class Surrogate(strategy.Strategy):
    """A linear Bayesian model with terms of neighbours, and Thompson draws.

    Each ask screens `mutants` mutants of the `elite` best trials. It also screens all genomes at a
    distance of one swap from the `region` best trials, and from the `further` best swaps by a draw.
    Genome i of an ask is the best genome by a draw with its deviation from the mean times
    `heats[i]`. With open sizes each genome has a size of its own. All are tried on all samples.
    """

    name: str = "surrogate"
    population: int = 4
    mutants: int = 1024
    elite: int = 4
    region: int = 3
    further: int = 2
    heats: tuple[float, ...] = (0.0, 0.0, 0.5, 0.5)

    def _init(
        self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None
    ) -> tuple[m.Neighbourhood, Sharing]:
        return m.neighbourhood(table), sharing(table, prior)

    def _ask(
        self, table: Table, state: strategy.State, key: Key, weights: Float[ndarray, " m"]
    ) -> strategy.Proposal:
        """Return one genome for each draw: the best new genome of its pool."""
        drawing, random, sizing, *breeding = keys_of(key, 6)
        archive, (around, shared) = state
        fitness = strategy.scalarise(archive.values, weights)
        effects = described(table, archive.genomes)
        observed = observations(table, archive, effects, fitness)
        heats = np.resize(self.heats, self.population)
        by = draw(observed, shared, np.concatenate([[0.0], heats]), drawing)
        expected = drawn_scores(table, effects, by)[:, 0]
        best = strategy.best_in_full(archive, fitness)
        sizes = _wanted_sizes(table, sizing, self.population)

        def scored(genomes: Genome) -> _Scored:
            effect = described(table, genomes)
            scores = drawn_scores(table, effect, by)[:, 1:]
            if sizes is not None:
                scores += _FAR * (_open_size(table, genomes)[:, None] != sizes)
            return _Scored(genomes, effect, scores)

        parents = best[: self.region]
        if sizes is not None and len(best):
            away = np.abs(_open_size(table, archive.genomes)[best] - sizes[:, None])
            parents = best[np.unique(np.argmin(away, axis=1))]
        elite = self._elite(table, archive, fitness, expected, random)
        parts = [scored(self._bred(table, around, elite, breeding))]
        parts += self._region(table, m.some_rows(archive.genomes, parents), around, scored)
        pool = m.joined_populations(*(part.genomes for part in parts))
        taking = np.concatenate([part.effects for part in parts])
        scores = np.concatenate([part.scores for part in parts])
        archived = strategy.fingerprints(effects)
        stale = np.isin(strategy.fingerprints(taking), archived) | ~allowed(table, pool)
        marks = strategy.fingerprints(coarse(taking))
        alike = np.isin(marks, strategy.fingerprints(coarse(effects)))
        chosen = m.some_rows(pool, _picked(scores, stale, alike, marks))
        return canonical(table, chosen), np.ones(self.population, np.float32), state.own

    def _region(
        self,
        table: Table,
        near: Genome,
        around: m.Neighbourhood,
        scored: Callable[[Genome], "_Scored"],
    ) -> Iterator["_Scored"]:
        """Yield genomes around the best trials: other sizes, one swap, swaps of the best swaps."""
        if len(table.ranged) and len(near.bits):
            resized = scored(m.of_other_sizes(table, near))
            yield resized
            near = m.joined_populations(near, self._best(resized))
        for _ in range(2):
            swaps = scored(swapped(table, m.filled(around, near, active(table, near)), _SWAPS))
            yield swaps
            near = self._best(swaps)

    def _best(self, part: "_Scored") -> Genome:
        """Return the genomes that are among the best ones by any draw."""
        ranks = np.argsort(part.scores, axis=0, kind="stable")[: self.further]
        return m.some_rows(part.genomes, np.unique(ranks))

    def _elite(
        self,
        table: Table,
        archive: strategy.Archive,
        fitness: Float[ndarray, " n"],
        expected: Float[ndarray, " n"],
        key: Key,
    ) -> Genome:
        """Return the best trials by fitness and by the model's expectation, in turns.

        Random genomes fill an elite that is too small.
        """
        valid = np.flatnonzero(np.isfinite(fitness))
        expecting = valid[np.argsort(expected[valid], kind="stable")]
        sides = [strategy.best_in_full(archive, fitness), expecting]
        each = min(-(-self.elite // 2), *map(len, sides))
        order = np.stack([side[:each] for side in sides], axis=1).ravel()[: self.elite]
        random = sample(table, key, self.elite - len(order))
        return m.joined_populations(m.some_rows(archive.genomes, order), random)

    def _bred(
        self, table: Table, around: m.Neighbourhood, elite: Genome, chance: list[Key]
    ) -> Genome:
        """Return mutants of the elite, more of its first genomes, and some random genomes."""
        move, cross, fresh = chance
        turns = (np.arange(_TURNS) + 0.5) / _TURNS
        parents = m.some_rows(elite, np.floor(self.elite * turns**2).astype(np.int32))
        mutants = m.bred(table, around, parents, self.mutants, (move, cross))
        return m.joined_populations(mutants, sample(table, fresh, self.mutants // _FRESH))


def described(table: Table, genomes: Genome) -> Float[ndarray, "n f"]:
    """Return the features of genomes that the model uses, the gaps' features last."""
    effects = features(table, genomes)
    return np.concatenate([effects, gap_features(table, effects)], axis=1)


def observations(
    table: Table,
    archive: strategy.Archive,
    effects: Float[ndarray, "n f"],
    fitness: Float[ndarray, " n"],
) -> Observations:
    """Return the archive as the model's observations."""
    return Observations(
        _centred(effects),
        _centred(products(table, effects)),
        1 - archive.fidelity,
        targets(fitness),
        1 / archive.fidelity,
    )


def _centred(rows: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    return np.asarray(rows - rows.sum(axis=0) / max(len(rows), 1))


def drawn_scores(
    table: Table, effects: Float[ndarray, "n f"], by: Coefficients
) -> Float[ndarray, "n d"]:
    """Return the score of each genome, by its effects, in each draw of the model."""
    return np.asarray(effects @ by.features + products(table, effects) @ by.pairs)


def _picked(
    scores: Float[ndarray, "c d"],
    stale: Bool[ndarray, " c"],
    alike: Bool[ndarray, " c"],
    own: UInt32[ndarray, " c"],
) -> Int[ndarray, " d"]:
    """Return the best genome of each draw that is new and unlike all known and picked genomes.

    If all new genomes are like others, return the best new genome. If no genome is new, return any.
    """
    chosen = []
    for score in scores.T:
        far = score.max() - score.min() + 1
        best = np.argmin(np.where(stale, np.inf, score + far * alike))
        alike = alike | (own == own[best])
        stale = stale.copy()
        stale[best] = True
        chosen.append(best)
    return np.stack(chosen)
