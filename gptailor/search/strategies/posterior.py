"""What told trials say of features' coefficients: a Bayesian linear model. JAX, in float64.

Fitness is a sum over features φ and products ψ of neighbouring features. A feature's coefficient is
a sum too: of its own, of one that it shares with its like at nearby positions, and of one that all
of its kind share. All are Gaussian; the variance of each block (a kind's own, its nearby, ...) and
that of the noise are found by expectation maximisation of the marginal likelihood, from what they
are for a start. It is solved in kernel form (trials × trials), as trials are fewer than
coefficients. Arrays are padded to powers of two, so that few shapes are compiled.
"""

from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from gptailor.search.space.hash_random import Key, normal
from gptailor.search.space.table import Table

_SAMPLE = 128
"""The best trials, as many as the variances are found by at most."""
_EM_STEPS = 6
"""Steps of expectation maximisation."""
_FIRST_SHARES = (0.4, 0.2, 0.2, 0.2, 0.5)
"""Shares of the variance for a start: own, nearby, of the kind, of pairs, of what was measured."""
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
_LEAST, _STEP = 64, 128
"""Trials are padded to this at least, columns to a multiple of that."""


@final
class Sharing(NamedTuple):
    """How coefficients are made of shared ones (each row has the norm 1), and the blocks.

    Columns are own, nearby, of the kind, of pairs; `blocks` is the number of each column's, `parts`
    which of these a block is of, `counts` how many coefficients it has.
    """

    near: Float[ndarray, "f f"]
    kind: Float[ndarray, "f l"]
    blocks: Int[ndarray, " k"]
    parts: Int[ndarray, " b"]
    counts: Int[ndarray, " b"]


@final
class Observations(NamedTuple):
    """Trials as the model sees them: centred features and pairs, targets, the noise of each."""

    features: Float[ndarray, "n f"]
    pairs: Float[ndarray, "n p"]
    lacking: Float[ndarray, " n"]  # 1 - fidelity
    targets: Float[ndarray, " n"]
    noise: Float[ndarray, " n"]  # in units of that of the best at full fidelity


@final
class Coefficients(NamedTuple):
    """Of features and of pairs, a column a draw."""

    features: Float[ndarray, "f d"]
    pairs: Float[ndarray, "p d"]


@final
class _Blocks(NamedTuple):
    """Of each block how many columns it has, and their first variance."""

    counts: Float[ndarray | Array, " b"]
    first: Float[ndarray | Array, " b"]


@final
class _Trials(NamedTuple):
    """Observations, padded: what is padding has no target and takes part in nothing."""

    targets: Float[ndarray | Array, " n"]
    noise: Float[ndarray | Array, " n"]
    lacking: Float[ndarray | Array, " n"]
    there: Float[ndarray | Array, " n"]


def sharing(table: Table, prior: Float[ndarray, " layers"] | None = None) -> Sharing:
    """What features are near each other, and of one kind, by the table's pairs.

    What was measured of the layers (`prior`) is one more that is shared: by what leaves, each as
    much as was measured of it.
    """
    size = len(table.at_features)
    first, second = table.pairs.T
    linked = np.eye(size)
    linked[first, second] = linked[second, first] = 1.0
    walk = linked / linked.sum(axis=1, keepdims=True)
    near, reached = np.linalg.matrix_power(walk, _SMOOTHINGS), linked
    for _ in range(12):  # 2^12 steps reach everything that is linked
        reached = np.minimum(reached @ reached, 1.0)
    line = np.unique(np.argmax(reached > 0, axis=1), return_inverse=True)[1]
    sizes = np.bincount(line)
    many = len(sizes)
    blocks = [line, many + line, 2 * many + np.arange(many), 3 * many + line[first]]
    counts = [sizes, sizes, sizes, np.bincount(line[first], minlength=many)]
    found = Sharing(
        near / np.linalg.norm(near, axis=1, keepdims=True),
        np.eye(many)[line],
        np.concatenate(blocks),
        np.repeat(np.arange(4), many),
        np.concatenate(counts),
    )
    return found if prior is None else _with_prior(found, table, prior)


def _with_prior(shared: Sharing, table: Table, prior: Float[ndarray, " layers"]) -> Sharing:
    """With a column more among those of kinds: what leaves, weighed by what was measured of it."""
    weights = np.zeros((len(shared.kind), 1))
    weights[table.drops, 0] = prior[table.at_features[table.drops]]
    if not weights.any() or not np.isfinite(weights).all():
        return shared
    before = 2 * len(shared.kind) + shared.kind.shape[1]
    return shared._replace(
        kind=np.concatenate([shared.kind, weights / np.linalg.norm(weights)], axis=1),
        blocks=np.insert(shared.blocks, before, len(shared.parts)),
        parts=np.append(shared.parts, 4),
        counts=np.append(shared.counts, 1),
    )


def products(table: Table, features: Float[ndarray, "n f"]) -> Float[ndarray, "n p"]:
    """The products of neighbouring features."""
    found: ndarray = features[:, table.pairs[:, 0]] * features[:, table.pairs[:, 1]]
    return found


def draw(seen: Observations, shared: Sharing, heat: Float[ndarray, " d"], key: Key) -> Coefficients:
    """Coefficients drawn from the posterior, deviations from its mean times `heat`; 0: the mean.

    By Matheron's rule: a draw from the prior, corrected by what it gets wrong of what was seen.
    """
    order = np.argsort(seen.targets, kind="stable")
    seen = Observations(*(rows[order] for rows in seen))
    near, kind = seen.features @ shared.near, seen.features @ shared.kind
    columns = np.concatenate([seen.features, near, kind, seen.pairs], axis=1, dtype=np.float32)
    (n, k), many = columns.shape, len(shared.parts)
    rows, wide = _padded_size(n), -(-k // _STEP) * _STEP
    few = columns[:_SAMPLE]
    grams = np.zeros((_padded_size(many, 4), *[min(rows, _SAMPLE)] * 2))
    for block in range(many):
        part = few[:, shared.blocks == block]
        grams[block, : len(few), : len(few)] = part @ part.T
    power = np.trace(grams, axis1=1, axis2=2)[:many] / max(len(few), 1)
    whole = np.maximum(np.bincount(shared.parts, power, len(_FIRST_SHARES)), 1e-3)
    start = (np.array(_FIRST_SHARES) / whole)[shared.parts]
    blocks = _Blocks(*(_padded(one, len(grams)) for one in (shared.counts.astype(float), start)))
    there = np.ones(n)
    trials = _Trials(
        *(_padded(one, rows) for one in (seen.targets, seen.noise, seen.lacking, there))
    )
    numbers = heat * normal(key, (k + n + 1, len(heat)))
    shapes = (wide, len(heat)), (rows, len(heat))
    drawn = _padded(numbers[:k], *shapes[0]), _padded(numbers[k:-1], *shapes[1]), numbers[-1]
    with jax.enable_x64(True):
        given = _padded(columns, rows, wide), _padded(shared.blocks, wide)
        full = np.asarray(_corrected(grams, blocks, trials, *given, *map(np.float64, drawn)))[:k]
    f, p = seen.features.shape[1], seen.pairs.shape[1]
    own, near, kind, pairs = np.split(full.astype(np.float32), [f, 2 * f, k - p])
    whole = own + shared.near @ near + shared.kind @ kind
    return Coefficients(whole.astype(np.float32), pairs)


@jax.jit
def _corrected(  # noqa: PLR0913, PLR0917 (what was seen, and what was drawn)
    grams: Float[Array, "b m m"],
    blocks: _Blocks,
    trials: _Trials,
    columns: Float[Array, "n k"],
    block: Int[Array, " k"],
    own: Float[Array, "k d"],
    error: Float[Array, "n d"],
    lack: Float[Array, " d"],
) -> Float[Array, "k d"]:
    """A draw of coefficients, by standard normal numbers for them, for noise and for fidelity."""
    variances, noise = _variances(grams, blocks, trials)
    by = variances[block][:, None]
    first = jnp.sqrt(by) * own
    wrong = trials.targets[:, None] - columns @ first.astype(columns.dtype)
    wrong -= jnp.sqrt(noise * trials.noise)[:, None] * error
    wrong -= _LACK * trials.lacking[:, None] * lack
    kernel = (columns * by.T.astype(columns.dtype)) @ columns.T  # the large product in float32
    kernel = _with_noise(kernel.astype(by.dtype), trials, noise)
    factor = jax.scipy.linalg.cho_factor(kernel, lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, trials.there[:, None] * wrong)
    return first + by * (columns.T @ solved.astype(columns.dtype))


def _with_noise(
    kernel: Float[Array, "n n"], trials: _Trials, noise: Float[Array, ""]
) -> Float[Array, "n n"]:
    kernel += _LACK**2 * trials.lacking[:, None] * trials.lacking[None, :]
    return kernel + jnp.diag(jnp.where(trials.there > 0, noise * trials.noise, 1.0))


def _variances(
    grams: Float[Array, "b m m"], blocks: _Blocks, trials: _Trials
) -> tuple[Float[Array, " b"], Float[Array, ""]]:
    """The likely ones of each block and of the noise, by the best trials."""
    many = grams.shape[-1]
    few = _Trials(*(rows[:many] for rows in trials))
    units = jnp.where(few.there > 0, few.noise, 1.0)

    def step(held: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        variances, noise = held
        kernel = _with_noise(jnp.tensordot(variances, grams, 1), few, noise)
        factor = jax.scipy.linalg.cho_factor(kernel, lower=True)
        inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(many))
        solved = inverse @ few.targets
        fit = jnp.einsum("bij,ij->b", grams, solved[:, None] * solved[None, :] - inverse)
        summed = jnp.maximum(variances * blocks.counts + variances**2 * fit, 0.0)
        each = noise * units
        error = ((each * solved) ** 2 + each - each**2 * jnp.diagonal(inverse)) / units
        wanted = jnp.sum(few.there * error) + _COUNTS * _NOISE
        wanted /= jnp.sum(few.there) + _COUNTS
        fresh = (summed + _COUNTS * blocks.first) / (blocks.counts + _COUNTS)
        return (fresh, jnp.maximum(wanted, _FLOOR)), None

    found: tuple[Array, Array]
    found, _ = jax.lax.scan(
        step, (jnp.asarray(blocks.first), jnp.asarray(_NOISE)), length=_EM_STEPS
    )
    return found


def _padded_size(many: int, least: int = _LEAST) -> int:
    """The least power of two that there is room in."""
    return max(least, 1 << (many - 1).bit_length())


def _padded(rows: ndarray, *shape: int) -> ndarray:
    found = np.zeros(shape, rows.dtype)
    found[tuple(map(slice, rows.shape))] = rows
    return found
