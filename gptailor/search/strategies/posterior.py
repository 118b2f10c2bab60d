"""A Bayesian linear model of fitness over what takes effect in a genome, and draws from it.

Fitness is a sum over features φ and products ψ of neighbouring features. A feature's coefficient is
a sum too: of its own, of one that it shares with its like at nearby positions, and of one that all
of its kind share. All are Gaussian; the variance of each block (a kind's own, its nearby, ...) and
that of the noise are found by expectation maximisation of the marginal likelihood, from what they
are for a start. In the form of kernels (trials × trials), as trials are fewer than coefficients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptailor.search.space.table import Table
from gptailor.search.strategies.hash_random import Seed, normal

SAMPLE = 128
"""The best trials, as many as the variances are found by at most."""
_EM_STEPS = 6
"""Steps of expectation maximisation."""
_FIRST_SHARES = (0.4, 0.2, 0.2, 0.2)
"""Shares of the variance for a start: own, nearby, of the kind, of pairs."""
NOISE = 0.02
"""Variance of the noise for a start, beside that of the targets."""
FLOOR = 1e-4
"""The least variance of the noise."""
COUNTS = 5.0
"""How many coefficients, or trials, what is there for a start counts as."""
LACK = 3.0
"""The deviation of what a lower fidelity adds to all alike."""
_SMOOTHINGS = 3
"""How often coefficients are averaged with their neighbours."""


class Sharing(NamedTuple):
    """How coefficients are made of shared ones (each row has the norm 1), and the blocks.

    Columns are own, nearby, of the kind, of pairs; `blocks` is the number of each column's.
    """

    near: Float[Array, "f f"]
    kind: Float[Array, "f f"]
    blocks: Int[Array, " k"]


class Observations(NamedTuple):
    """Trials as the model sees them: centred features and pairs, targets, the noise of each."""

    features: Float[Array, "n f"]
    pairs: Float[Array, "n p"]
    lacking: Float[Array, " n"]  # 1 - fidelity
    targets: Float[Array, " n"]
    noise: Float[Array, " n"]  # in units of that of the best at full fidelity
    there: Bool[Array, " n"]


class Variances(NamedTuple):
    """Of each column's coefficient, and of the noise."""

    columns: Float[Array, " k"]
    noise: Float[Array, ""]


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
    columns = _columns(seen, shared)
    found = _variances(seen, columns, shared.blocks)
    n, k = columns.shape
    numbers = heat * normal(seed, (k + n + 1, len(heat)))
    first = jnp.sqrt(found.columns)[:, None] * numbers[:k]
    error = jnp.sqrt(found.noise * seen.noise)[:, None] * numbers[k:-1]
    wrong = seen.targets[:, None] - columns @ first - error
    wrong -= LACK * seen.lacking[:, None] * numbers[-1]
    wrong = jnp.where(seen.there[:, None], wrong, 0.0)
    factor = jnp.linalg.cholesky(_kernel(seen, columns, found))
    solved = jax.scipy.linalg.cho_solve((factor, True), wrong)
    full = first + found.columns[:, None] * (columns.T @ solved)
    f = seen.features.shape[1]
    near, kind = shared.near @ full[f : 2 * f], shared.kind @ full[2 * f : 3 * f]
    return Coefficients(full[:f] + near + kind, full[3 * f :])


def _columns(seen: Observations, shared: Sharing) -> Float[Array, "n k"]:
    parts = (seen.features, seen.features @ shared.near, seen.features @ shared.kind, seen.pairs)
    return jnp.concatenate(parts, axis=1)


def _kernel(seen: Observations, columns: Float[Array, "n k"], by: Variances) -> Float[Array, "n n"]:
    kernel = (columns * by.columns) @ columns.T
    kernel += LACK**2 * seen.lacking[:, None] * seen.lacking[None, :]
    return kernel + jnp.diag(jnp.where(seen.there, by.noise * seen.noise, 1.0))


def _variances(
    seen: Observations, columns: Float[Array, "n k"], blocks: Int[Array, " k"]
) -> Variances:
    """The likely ones, by the best trials."""
    order = jnp.argsort(jnp.where(seen.there, seen.targets, jnp.inf))[:SAMPLE]
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
        wanted = (jnp.sum(jnp.where(few.there, error, 0.0)) + COUNTS * NOISE) / (many + COUNTS)
        fresh = (summed + COUNTS * first.columns) / (counts + COUNTS)
        return Variances(fresh, jnp.maximum(wanted, FLOOR)), None

    found: Variances = jax.lax.scan(step, first, length=_EM_STEPS)[0]
    return found


def _first(seen: Observations, columns: Float[Array, "n k"]) -> Variances:
    """Each part has its share of the targets' variance, which is 1."""
    f, p = seen.features.shape[1], seen.pairs.shape[1]
    many = jnp.maximum(jnp.sum(seen.there), 1)
    power = jnp.sum(columns**2, axis=0) / many
    part = jnp.repeat(jnp.arange(4), jnp.array([f, f, f, p]), total_repeat_length=3 * f + p)
    whole = jnp.maximum(jax.ops.segment_sum(power, part, 4), 1e-3)
    return Variances((jnp.array(_FIRST_SHARES) / whole)[part], jnp.asarray(NOISE))


def _unit(rows: Float[Array, "f f"]) -> Float[Array, "f f"]:
    lengths: Array = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths
