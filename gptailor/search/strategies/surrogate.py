"""The strategy that learns: draws of a linear model, each minimised over many small changes.

For each genome of an ask, coefficients are drawn from the posterior (Thompson, 1933), and mutants
of the best trials are screened by them, thousands for each ask. So what is uncertain is tried as
often as it may be the best.

The model is Bayesian and linear in what takes effect in a genome: fitness is a sum over features φ
and products ψ of neighbouring features. A feature's coefficient is a sum too: of its own, of one
that it shares with its like at nearby positions, and of one that all of its kind share. All are
Gaussian; the variance of each block (a kind's own, its nearby, ...) and that of the noise are found
by expectation maximisation of the marginal likelihood, from what they are for a start. It is solved
in kernel form (trials × trials), as trials are fewer than coefficients.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, canonical, features
from gptailor.search.strategies import moves as m
from gptailor.search.strategies import strategy
from gptailor.search.strategies.hash_random import Key, Seed, drawn, normal, seeds

_FRESH = 16
"""For so many mutants there is one random genome."""
_MORE = 1.0
"""Moves of a mutant beyond the first, in the mean."""
_TURNS = 32
"""Parents that take turns, the first ones of the elite more than once."""

_WORST = 4.0
"""Where targets end: a cut that ruins a model is no more than very bad."""

_SAMPLE = 128
"""The best trials, as many as the variances are found by at most."""
_EM_STEPS = 6
"""Steps of expectation maximisation."""
_FIRST_SHARES = (0.4, 0.2, 0.2, 0.2)
"""Shares of the variance for a start: own, nearby, of the kind, of pairs."""
_NOISE = 0.02
"""Variance of the noise for a start, beside that of the targets."""
_FLOOR = 1e-4
"""The least variance of the noise."""
_COUNTS = 5.0
"""How many coefficients, or trials, what is there for a start counts as."""
_LACK = 3.0
"""The deviation of what a lower fidelity adds to all alike."""
_SMOOTHINGS = 3
"""How often coefficients are averaged with their neighbours."""

# ---------------------------------------------------------------------------------------- the model


def targets(found: Float[Array, " n"], there: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Fitness with mean 0 and deviation 1 over what was told; 0 where nothing was.

    What is far behind the best counts by its logarithm, in units of the distance from the best to
    the better half's median. A failure counts as the worst.
    """
    valid = there & jnp.isfinite(found)
    best = jnp.min(jnp.where(valid, found, jnp.inf))
    behind = jnp.where(valid, found - best, jnp.nan)
    unit = jnp.nanquantile(behind, 0.5)
    behind = jnp.log1p(behind / jnp.maximum(jnp.nan_to_num(unit), 1e-9))
    worst = jnp.nan_to_num(jnp.nanmax(behind))
    behind = jnp.where(valid, behind, worst)
    many = jnp.maximum(jnp.sum(there), 1)
    mean = jnp.sum(jnp.where(there, behind, 0.0)) / many
    spread = jnp.sqrt(jnp.sum(jnp.where(there, (behind - mean) ** 2, 0.0)) / many)
    scaled = (behind - mean) / jnp.maximum(spread, 1e-6)
    return jnp.where(there, jnp.clip(scaled, -_WORST, _WORST), 0.0)


@final
class Sharing(NamedTuple):
    """How coefficients are made of shared ones (each row has the norm 1), and the blocks.

    Columns are own, nearby, of the kind, of pairs; `blocks` is the number of each column's.
    """

    near: Float[Array, "f f"]
    kind: Float[Array, "f f"]
    blocks: Int[Array, " k"]


@final
class Observations(NamedTuple):
    """Trials as the model sees them: centred features and pairs, targets, the noise of each."""

    features: Float[Array, "n f"]
    pairs: Float[Array, "n p"]
    lacking: Float[Array, " n"]  # 1 - fidelity
    targets: Float[Array, " n"]
    noise: Float[Array, " n"]  # in units of that of the best at full fidelity
    there: Bool[Array, " n"]


@final
class Variances(NamedTuple):
    """Of each column's coefficient, and of the noise."""

    columns: Float[Array, " k"]
    noise: Float[Array, ""]


@final
class Coefficients(NamedTuple):
    """Of features and of pairs, a column a draw."""

    features: Float[Array, "f d"]
    pairs: Float[Array, "p d"]


def sharing(table: Table) -> Sharing:
    """What features are near each other, and of one kind, by the table's pairs."""
    size = len(table.at_features)
    first, second = jnp.asarray(table.pairs).T
    linked = jnp.eye(size).at[first, second].set(1.0).at[second, first].set(1.0)
    walk = linked / jnp.sum(linked, axis=1, keepdims=True)
    near, kind = jnp.linalg.matrix_power(walk, _SMOOTHINGS), linked
    for _ in range(12):  # 2^12 steps reach everything that is linked
        kind = jnp.minimum(kind @ kind, 1.0)
    line = jnp.argmax(kind > 0, axis=1)
    blocks = [line, size + line, 2 * size + line, 3 * size + line[first]]
    return Sharing(_unit(near), _unit(kind), jnp.concatenate(blocks))


def products(table: Table, features: Float[Array, "n f"]) -> Float[Array, "n p"]:
    """The products of neighbouring features."""
    first, second = jnp.asarray(table.pairs).T
    return features[:, first] * features[:, second]


def draw(seen: Observations, shared: Sharing, heat: Float[Array, " d"], seed: Seed) -> Coefficients:
    """Coefficients drawn from the posterior, deviations from its mean times `heat`; 0: the mean.

    By Matheron's rule: a draw from the prior, corrected by what it gets wrong of what was seen.
    """
    near, kind = seen.features @ shared.near, seen.features @ shared.kind
    columns = jnp.concatenate([seen.features, near, kind, seen.pairs], axis=1)
    found = _variances(seen, columns, shared.blocks)
    n, k = columns.shape
    numbers = heat * normal(seed, (k + n + 1, len(heat)))
    first = jnp.sqrt(found.columns)[:, None] * numbers[:k]
    error = jnp.sqrt(found.noise * seen.noise)[:, None] * numbers[k:-1]
    wrong = seen.targets[:, None] - columns @ first - error
    wrong -= _LACK * seen.lacking[:, None] * numbers[-1]
    wrong = jnp.where(seen.there[:, None], wrong, 0.0)
    factor = jnp.linalg.cholesky(_kernel(seen, columns, found))
    solved = jax.scipy.linalg.cho_solve((factor, True), wrong)
    full = first + found.columns[:, None] * (columns.T @ solved)
    f = seen.features.shape[1]
    near, kind = shared.near @ full[f : 2 * f], shared.kind @ full[2 * f : 3 * f]
    return Coefficients(full[:f] + near + kind, full[3 * f :])


def _kernel(seen: Observations, columns: Float[Array, "n k"], by: Variances) -> Float[Array, "n n"]:
    kernel = (columns * by.columns) @ columns.T
    kernel += _LACK**2 * seen.lacking[:, None] * seen.lacking[None, :]
    return kernel + jnp.diag(jnp.where(seen.there, by.noise * seen.noise, 1.0))


def _variances(
    seen: Observations, columns: Float[Array, "n k"], blocks: Int[Array, " k"]
) -> Variances:
    """The likely ones, by the best trials."""
    order = jnp.argsort(jnp.where(seen.there, seen.targets, jnp.inf))[:_SAMPLE]
    few = jax.tree.map(lambda rows: rows[order], seen)
    some = columns[order]
    total = len(blocks)
    counts = jax.ops.segment_sum(jnp.ones(total), blocks, total)[blocks]
    first = _first(few, some)

    def step(held: Variances, _: None) -> tuple[Variances, None]:
        factor = jnp.linalg.cholesky(_kernel(few, some, held))
        solved = jax.scipy.linalg.cho_solve((factor, True), few.targets)
        back = jax.scipy.linalg.solve_triangular(factor, some, lower=True)
        mean = held.columns * (some.T @ solved)
        left = held.columns - held.columns**2 * jnp.sum(back**2, axis=0)
        summed = jax.ops.segment_sum(mean**2 + jnp.maximum(left, 0.0), blocks, total)[blocks]
        inverse = jnp.diagonal(jax.scipy.linalg.cho_solve((factor, True), jnp.eye(len(order))))
        noise = held.noise * few.noise
        error = ((noise * solved) ** 2 + noise - noise**2 * inverse) / few.noise
        many = jnp.sum(few.there)
        wanted = (jnp.sum(jnp.where(few.there, error, 0.0)) + _COUNTS * _NOISE) / (many + _COUNTS)
        fresh = (summed + _COUNTS * first.columns) / (counts + _COUNTS)
        return Variances(fresh, jnp.maximum(wanted, _FLOOR)), None

    found: Variances = jax.lax.scan(step, first, length=_EM_STEPS)[0]
    return found


def _first(seen: Observations, columns: Float[Array, "n k"]) -> Variances:
    """Each part has its share of the targets' variance, which is 1."""
    f, p = seen.features.shape[1], seen.pairs.shape[1]
    many = jnp.maximum(jnp.sum(seen.there), 1)
    power = jnp.sum(columns**2, axis=0) / many
    part = jnp.repeat(jnp.arange(4), jnp.array([f, f, f, p]), total_repeat_length=3 * f + p)
    whole = jnp.maximum(jax.ops.segment_sum(power, part, 4), 1e-3)
    return Variances((jnp.array(_FIRST_SHARES) / whole)[part], jnp.asarray(_NOISE))


def _unit(rows: Float[Array, "f f"]) -> Float[Array, "f f"]:
    lengths: Array = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


# ------------------------------------------------------------------------------------- the strategy


@final
class Known(NamedTuple):
    """What a surrogate works out once for a table."""

    around: m.Neighbourhood
    shared: Sharing


@final
@dataclass(frozen=True)
class Surrogate(strategy.Strategy):
    """A linear Bayesian model with terms of neighbours, and Thompson draws.

    `mutants` of the `elite` best trials are screened, each of up to `moves` moves. Genome i of an
    ask is by a draw whose deviation from the mean is times `heats[i]`. It is tried on the first of
    `shares` of the samples, and of those the best one in `rise` on the next.
    """

    name: str = "surrogate"
    population: int = 4
    mutants: int = 1024
    elite: int = 12
    moves: int = 1
    heats: tuple[float, ...] = (0.0, 0.5, 1.0, 1.0)
    shares: tuple[float, ...] = (1.0,)
    rise: int = 3

    def _init(self, table: Table, key: Key) -> Known:
        return Known(m.neighbourhood(table), sharing(table))

    def _ask(
        self, table: Table, state: strategy.State, key: Key, weights: Float[Array, " m"]
    ) -> strategy.Proposal:
        """One genome for each draw: the best of its pool that is new."""
        drawing, random, *breeding = seeds(key, 6)
        archive, own = state
        effects = jax.vmap(partial(features, table))(archive.genomes)
        seen = _seen(table, archive, effects, weights)
        heats = jnp.resize(jnp.array(self.heats), (self.population,))
        by = draw(seen, own.shared, jnp.concatenate([jnp.zeros(1), heats]), drawing)
        expected = _scores(table, effects, by)[:, 0]
        elite = self._elite(table, archive, expected, weights, random)
        pool = self._bred(table, own.around, elite, breeding)
        taking = jax.vmap(partial(features, table))(pool)
        marks, held = strategy.fingerprints(taking), strategy.fingerprints(effects)
        stale = jnp.any((marks[:, None] == held[None, :]) & strategy.told(archive)[None, :], axis=1)
        chosen = m.some_rows(pool, _picked(_scores(table, taking, by)[:, 1:], stale, marks))
        asked = jax.vmap(partial(canonical, table))(chosen)
        found = strategy.scalarise(archive.values, weights)
        return *strategy.successive_halving(archive, found, asked, self.shares, self.rise), own

    def _elite(
        self,
        table: Table,
        archive: strategy.Archive,
        expected: Float[Array, " capacity"],
        weights: Float[Array, " m"],
        seed: Seed,
    ) -> Genome:
        """The best by what was told and by what the model expects, in turns; random ones if few."""
        found = strategy.scalarise(archive.values, weights)
        valid = jnp.isfinite(found)
        full = archive.fidelity >= jnp.max(jnp.where(valid, archive.fidelity, 0.0))
        orders = [
            jnp.argsort(jnp.where(mask, score, jnp.inf))[: -(-self.elite // 2)]
            for mask, score in ((valid & full, found), (valid, expected))
        ]
        order = jnp.stack(orders, axis=1).ravel()[: self.elite]
        few = jnp.arange(self.elite) // 2 >= jnp.sum(valid & full)
        random = drawn(table, seed, self.elite)
        return m.where(few | ~valid[order], random, m.some_rows(archive.genomes, order))

    def _bred(
        self, table: Table, around: m.Neighbourhood, elite: Genome, chance: list[Seed]
    ) -> Genome:
        """Mutants of the elite, more of its first ones, and some random genomes."""
        count, move, cross, fresh = chance
        turns = (jnp.arange(_TURNS) + 0.5) / _TURNS
        parents = m.some_rows(elite, jnp.floor(self.elite * turns**2).astype(jnp.int32))
        often = m.step_counts(count, self.mutants, _MORE)
        mutants = m.bred(table, around, parents, often, (move, cross), self.moves)
        return m.joined_populations(mutants, drawn(table, fresh, self.mutants // _FRESH))


def _seen(
    table: Table,
    archive: strategy.Archive,
    effects: Float[Array, "n f"],
    weights: Float[Array, " m"],
) -> Observations:
    """The archive as the model sees it."""
    there = strategy.told(archive)
    return Observations(
        _centred(effects, there),
        _centred(products(table, effects), there),
        jnp.where(there, 1 - archive.fidelity, 0.0),
        targets(strategy.scalarise(archive.values, weights), there),
        1 / archive.fidelity,
        there,
    )


def _centred(rows: Float[Array, "n k"], there: Bool[Array, " n"]) -> Float[Array, "n k"]:
    mean = jnp.sum(jnp.where(there[:, None], rows, 0.0), axis=0) / jnp.maximum(jnp.sum(there), 1)
    return jnp.where(there[:, None], rows - mean, 0.0)


def _scores(table: Table, effects: Float[Array, "n f"], by: Coefficients) -> Float[Array, "n d"]:
    return effects @ by.features + products(table, effects) @ by.pairs


def _picked(
    scores: Float[Array, "c d"], stale: Bool[Array, " c"], own: UInt32[Array, " c"]
) -> Int[Array, " d"]:
    """By each draw the best that is neither known nor picked already; if all are, any."""
    chosen = []
    for score in scores.T:
        best = jnp.argmin(jnp.where(stale, jnp.inf, score))
        stale |= own == own[best]
        chosen.append(best)
    return jnp.stack(chosen)
