"""The strategy that learns: draws of a linear model, each minimised over many small changes.

For each genome of an ask, coefficients are drawn from the posterior (Thompson, 1933), and mutants
of the best trials are screened by them, thousands for each ask. So what is uncertain is tried as
often as it may be the best. The model is in `posterior`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from numpy import ndarray

from gptailor.search.space.genome import Genome
from gptailor.search.space.hash_random import Key, keys_of
from gptailor.search.space.table import Table, active, allowed, canonical, coarse, features, sample
from gptailor.search.strategies import moves as m
from gptailor.search.strategies import strategy
from gptailor.search.strategies.posterior import (
    Coefficients,
    Observations,
    Sharing,
    draw,
    products,
    sharing,
)

_FRESH = 16
"""For so many mutants there is one random genome."""
_MORE = 1.0
"""Moves of a mutant beyond the first, in the mean."""
_SWAPS = 4096
"""The most swaps that are screened at once."""
_TURNS = 32
"""Parents that take turns, the first ones of the elite more than once."""

_WORST = 4.0
"""Where targets end: a cut that ruins a model is no more than very bad."""


def targets(found: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    """Fitness with mean 0 and deviation 1 over what was told.

    What is far behind the best counts by its logarithm, in units of the distance from the best to
    the better half's median. A failure counts as the worst.
    """
    valid = np.isfinite(found)
    if not valid.any():
        return np.zeros(len(found))
    behind = found - found[valid].min()
    behind = np.log1p(behind / max(float(np.median(behind[valid])), 1e-9))
    behind = np.where(valid, behind, behind[valid].max())
    scaled = (behind - behind.mean()) / max(float(behind.std()), 1e-6)
    clipped: ndarray = np.clip(scaled, -_WORST, _WORST)
    return clipped


def swapped(table: Table, parents: Genome, most: int) -> Genome:
    """All genomes with one bit of a set off and another of it on; or so many of them, evenly."""
    bits, group = parents.bits, table.group
    mates = (group[:, None] == group[None, :]) & (group >= 0)[:, None]
    may = active(table, parents).bits
    row, off, on = np.nonzero((bits & may)[:, :, None] & ~bits[:, None, :] & mates)
    kept = np.linspace(0, len(row) - 1, min(most, len(row))).astype(np.int64)
    row, off, on = row[kept], off[kept], on[kept]
    found = m.some_rows(parents, row)
    found.bits[np.arange(len(row)), off] = False
    found.bits[np.arange(len(row)), on] = True
    return found


@final
class Known(NamedTuple):
    """What a surrogate works out once for a table."""

    around: m.Neighbourhood
    shared: Sharing


@final
@dataclass(frozen=True)
class Surrogate(strategy.Strategy):
    """A linear Bayesian model with terms of neighbours, and Thompson draws.

    `mutants` of the `elite` best trials are screened, each of up to `moves` moves; so is all that
    is one swap away from the `region` best, or from the `further` best swaps by a draw. Genome i of
    an ask is by a draw whose deviation from the mean is times `heats[i]`. It is tried on the first
    of `shares` of the samples, and of those the best one in `rise` on the next.
    """

    name: str = "surrogate"
    population: int = 4
    mutants: int = 1024
    elite: int = 4
    region: int = 3
    further: int = 2
    moves: int = 1
    heats: tuple[float, ...] = (0.0, 0.0, 0.5, 0.5)
    shares: tuple[float, ...] = (1.0,)
    rise: int = 3

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Known:
        return Known(m.neighbourhood(table), sharing(table, prior))

    def _ask(
        self, table: Table, state: strategy.State, key: Key, weights: Float[ndarray, " m"]
    ) -> strategy.Proposal:
        """One genome for each draw: the best of its pool that is new."""
        drawing, random, *breeding = keys_of(key, 6)
        archive, own = state
        found = strategy.scalarise(archive.values, weights)
        effects = features(table, archive.genomes)
        seen = _seen(table, archive, effects, found)
        heats = np.resize(self.heats, self.population)
        by = draw(seen, own.shared, np.concatenate([[0.0], heats]), drawing)
        expected = _scores(table, effects, by)[:, 0]
        elite = self._elite(table, archive, found, expected, random)
        pool = self._bred(table, own.around, elite, breeding)
        taking = features(table, pool)
        scores = _scores(table, taking, by)[:, 1:]
        for near, effect, score in self._region(table, archive, found, own.around, by):
            pool = m.joined_populations(pool, near)
            taking = np.concatenate([taking, effect])
            scores = np.concatenate([scores, score])
        known = strategy.fingerprints(effects)
        stale = np.isin(strategy.fingerprints(taking), known) | ~allowed(table, pool)
        marks = strategy.fingerprints(coarse(taking))
        alike = np.isin(marks, strategy.fingerprints(coarse(effects)))
        chosen = m.some_rows(pool, _picked(scores, stale, alike, marks))
        asked = canonical(table, chosen)
        return *strategy.successive_halving(archive, found, asked, self.shares, self.rise), own

    def _region(
        self,
        table: Table,
        archive: strategy.Archive,
        found: Float[ndarray, " n"],
        around: m.Neighbourhood,
        by: Coefficients,
    ) -> Iterator[tuple[Genome, Float[ndarray, "n f"], Float[ndarray, "n d"]]]:
        """All that are one swap away from the best trials, and from the best of these by a draw."""
        best = np.flatnonzero(_full(archive, found))
        best = best[np.argsort(found[best], kind="stable")][: self.region]
        near = m.some_rows(archive.genomes, best)
        for again in (True, False):
            near = swapped(table, m.filled(around, near, active(table, near)), _SWAPS)
            if not len(near.bits):
                return
            effect = features(table, near)
            scores = _scores(table, effect, by)[:, 1:]
            yield near, effect, scores
            if again:
                ranks = np.argsort(scores, axis=0, kind="stable")[: self.further]
                near = m.some_rows(near, np.unique(ranks))

    def _elite(
        self,
        table: Table,
        archive: strategy.Archive,
        found: Float[ndarray, " n"],
        expected: Float[ndarray, " n"],
        key: Key,
    ) -> Genome:
        """The best by what was told and by what the model expects, in turns; random ones if few."""
        valid = np.isfinite(found)
        full = _full(archive, found)
        sides = [
            np.flatnonzero(mask)[np.argsort(score[mask], kind="stable")]
            for mask, score in ((full, found), (valid, expected))
        ]
        each = min(-(-self.elite // 2), *map(len, sides))
        order = np.stack([side[:each] for side in sides], axis=1).ravel()[: self.elite]
        random = sample(table, key, self.elite - len(order))
        return m.joined_populations(m.some_rows(archive.genomes, order), random)

    def _bred(
        self, table: Table, around: m.Neighbourhood, elite: Genome, chance: list[Key]
    ) -> Genome:
        """Mutants of the elite, more of its first ones, and some random genomes."""
        count, move, cross, fresh = chance
        turns = (np.arange(_TURNS) + 0.5) / _TURNS
        parents = m.some_rows(elite, np.floor(self.elite * turns**2).astype(np.int32))
        often = m.step_counts(count, self.mutants, _MORE)
        mutants = m.bred(table, around, parents, often, (move, cross), self.moves)
        return m.joined_populations(mutants, sample(table, fresh, self.mutants // _FRESH))


def _full(archive: strategy.Archive, found: Float[ndarray, " n"]) -> Bool[ndarray, " n"]:
    """Which trials have a score at the highest fidelity that one has a score at."""
    valid = np.isfinite(found)
    highest = np.max(archive.fidelity, where=valid, initial=0.0)
    full: ndarray = valid & (archive.fidelity >= highest)
    return full


def _seen(
    table: Table,
    archive: strategy.Archive,
    effects: Float[ndarray, "n f"],
    found: Float[ndarray, " n"],
) -> Observations:
    """The archive as the model sees it."""
    return Observations(
        _centred(effects),
        _centred(products(table, effects)),
        1 - archive.fidelity,
        targets(found),
        1 / archive.fidelity,
    )


def _centred(rows: Float[ndarray, "n k"]) -> Float[ndarray, "n k"]:
    found: ndarray = rows - rows.sum(axis=0) / max(len(rows), 1)
    return found


def _scores(
    table: Table, effects: Float[ndarray, "n f"], by: Coefficients
) -> Float[ndarray, "n d"]:
    found: ndarray = effects @ by.features + products(table, effects) @ by.pairs
    return found


def _picked(
    scores: Float[ndarray, "c d"],
    stale: Bool[ndarray, " c"],
    alike: Bool[ndarray, " c"],
    own: UInt32[ndarray, " c"],
) -> Int[ndarray, " d"]:
    """By each draw the best that isn't `stale`, and unlike all that is known or picked already.

    Where all that is new is like something, the best of that; if nothing is new, any.
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


def learned(  # noqa: PLR0913, PLR0917 (what was told, and what is asked of it)
    table: Table,
    told: tuple[Genome, Float[ndarray, "n m"], Float[ndarray, " n"]],
    weights: Float[ndarray, " m"],
    prior: Float[ndarray, " layers"] | None,
    population: Genome,
    draws: int,
    key: Key,
) -> Float[ndarray, "k d"]:
    """What genomes lose by draws of the model: in deviations of its targets, but for a constant.

    `told` are genomes, what they lost, and their shares of the samples.
    """
    genomes, values, shares = told
    archive = strategy.Archive(genomes, values, shares, len(shares))
    found = strategy.scalarise(values, weights)
    seen = _seen(table, archive, features(table, genomes), found)
    by = draw(seen, sharing(table, prior), np.ones(draws), key)
    return _scores(table, features(table, population), by)
