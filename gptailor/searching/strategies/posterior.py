"""A Bayesian linear model of the coefficients of features. It uses JAX in float64.

Fitness is a sum over features φ and products ψ of neighbouring features. A feature's coefficient is
a sum of three coefficients: its own, a coefficient of like features at nearby positions, and a
coefficient of all features of its kind. All coefficients are Gaussian. Expectation maximisation of
the marginal likelihood estimates the variance of each block of coefficients, and of the noise. The
model is solved in kernel form (trials × trials), as trials are fewer than coefficients. Arrays are
padded to powers of two, so that few shapes are compiled.
"""

from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from gptailor.searching.space.hash_random import Key, normal
from gptailor.searching.space.table import Table, gap_features

_SAMPLE = 128
"""The most trials that variances are estimated from. The best trials are used."""
_EM_STEPS = 6
"""Steps of expectation maximisation."""
_FIRST_SHARES = (0.4, 0.2, 0.2, 0.2, 0.5)
"""Initial shares of the variance: own, nearby, of the kind, of pairs, of the prior."""
_NOISE = 0.02
"""The initial variance of the noise, relative to the targets' variance."""
_FLOOR = 1e-4
"""The least variance of the noise."""
_COUNTS = 5.0
"""The number of coefficients, or trials, that an initial variance counts as."""
_LACK = 3.0
"""The deviation of the offset that a lower fidelity adds to all trials."""
_SMOOTHINGS = 3
"""The number of times that coefficients are averaged with their neighbours."""
_LEAST, _STEP = 128, 128
"""The least padded number of trials, and the unit of the padded number of columns."""


@final
class Sharing(NamedTuple):
    """Weights of shared coefficients, a row a feature with the norm 1, and the blocks.

    Columns are own, nearby, of the kind, of pairs. `blocks` is the block of each column. `parts` is
    the part of the columns that a block belongs to. `counts` is the number of coefficients of a
    block.
    """

    near: Float[ndarray, "f f"]
    kind: Float[ndarray, "f l"]
    blocks: Int[ndarray, " k"]
    parts: Int[ndarray, " b"]
    counts: Int[ndarray, " b"]


@final
class Observations(NamedTuple):
    """The model's view of trials: centred features and pairs, targets, and noise."""

    features: Float[ndarray, "n f"]
    pairs: Float[ndarray, "n p"]
    lacking: Float[ndarray, " n"]  # 1 - fidelity
    targets: Float[ndarray, " n"]
    noise: Float[ndarray, " n"]  # relative to the noise at full fidelity


@final
class Coefficients(NamedTuple):
    """Coefficients of features and of pairs, a column a draw."""

    features: Float[ndarray, "f d"]
    pairs: Float[ndarray, "p d"]


_Blocks = tuple[Float[ndarray | Array, " b"], Float[ndarray | Array, " b"]]
"""The number of columns of each block, and the initial variances."""


@final
class _Trials(NamedTuple):
    """Observations with padding. Padding has no target and no effect."""

    targets: Float[ndarray | Array, " n"]
    noise: Float[ndarray | Array, " n"]
    lacking: Float[ndarray | Array, " n"]
    present: Float[ndarray | Array, " n"]


def sharing(table: Table, prior: Float[ndarray, " layers"] | None = None) -> Sharing:
    """Return the neighbours and the kinds of features, by the table's pairs.

    `prior` are measurements of the layers. They add a coefficient that all drops share, weighted by
    the measurements.
    """
    plain = len(table.at_features)
    size = plain + gap_features(table, np.zeros((0, plain))).shape[1]
    first, second = table.pairs.T
    linked = np.eye(size)
    linked[first, second] = linked[second, first] = 1.0
    walk = linked / linked.sum(axis=1, keepdims=True)
    near, reached = np.linalg.matrix_power(walk, _SMOOTHINGS), linked
    for _ in range(12):  # 2^12 steps reach everything that is linked
        reached = np.minimum(reached @ reached, 1.0)
    line = np.unique(np.argmax(reached > 0, axis=1), return_inverse=True)[1]
    sizes = np.bincount(line)
    count = len(sizes)
    blocks = [line, count + line, 2 * count + np.arange(count), 3 * count + line[first]]
    counts = [sizes, sizes, sizes, np.bincount(line[first], minlength=count)]
    shared = Sharing(
        near / np.linalg.norm(near, axis=1, keepdims=True),
        np.eye(count)[line],
        np.concatenate(blocks),
        _parts(line, count, plain),
        np.concatenate(counts),
    )
    return shared if prior is None else _with_prior(shared, table, prior)


def _parts(line: Int[ndarray, " f"], count: int, plain: int) -> Int[ndarray, " b"]:
    """Return the part of each block; coefficients of measured gaps are of the prior's part."""
    parts = np.repeat(np.arange(4), count)
    parts[2 * count + line[plain:]] = 4
    return parts


def _with_prior(shared: Sharing, table: Table, prior: Float[ndarray, " layers"]) -> Sharing:
    """Return the sharing with a column for drops, weighted by the measurements of layers."""
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
    """Return the products of neighbouring features."""
    return np.asarray(features[:, table.pairs[:, 0]] * features[:, table.pairs[:, 1]])


def draw(
    observed: Observations, shared: Sharing, heat: Float[ndarray, " d"], key: Key
) -> Coefficients:
    """Return coefficients drawn from the posterior, with deviations from its mean times `heat`.

    The draw follows Matheron's rule: a draw from the prior, corrected by its error on the
    observations. With `heat` 0 the result is the mean.
    """
    order = np.argsort(observed.targets, kind="stable")
    observed = Observations(*(rows[order] for rows in observed))
    near, kind = observed.features @ shared.near, observed.features @ shared.kind
    columns = np.concatenate(
        [observed.features, near, kind, observed.pairs], axis=1, dtype=np.float32
    )
    (n, k), count = columns.shape, len(shared.parts)
    rows, wide = _padded_size(n, _LEAST), -(-k // _STEP) * _STEP
    few = columns[:_SAMPLE]
    grams = np.zeros((_padded_size(count, 4), *[min(rows, _SAMPLE)] * 2))
    for block in range(count):
        part = few[:, shared.blocks == block]
        grams[block, : len(few), : len(few)] = part @ part.T
    power = np.trace(grams, axis1=1, axis2=2)[:count] / max(len(few), 1)
    powers = np.maximum(np.bincount(shared.parts, power, len(_FIRST_SHARES)), 1e-3)
    first = (np.array(_FIRST_SHARES) / powers)[shared.parts]
    blocks = _padded(shared.counts.astype(float), len(grams)), _padded(first, len(grams))
    vectors = observed.targets, observed.noise, observed.lacking, np.ones(n)
    trials = _Trials(*(_padded(vector, rows) for vector in vectors))
    numbers = heat * normal(key, (k + n + 1, len(heat)))
    own, error = _padded(numbers[:k], wide, len(heat)), _padded(numbers[k:-1], rows, len(heat))
    with jax.enable_x64(True):
        design = _padded(columns, rows, wide), _padded(shared.blocks, wide)
        full = np.asarray(
            _corrected(grams, blocks, trials, *design, *map(np.float64, (own, error, numbers[-1])))
        )[:k]
    f, p = observed.features.shape[1], observed.pairs.shape[1]
    own, near, kind, pairs = np.split(full.astype(np.float32), [f, 2 * f, k - p])
    total = own + shared.near @ near + shared.kind @ kind
    return Coefficients(total.astype(np.float32), pairs)


@jax.jit
def _corrected(  # noqa: PLR0913, PLR0917 (observations and drawn numbers)
    grams: Float[Array, "b m m"],
    blocks: _Blocks,
    trials: _Trials,
    columns: Float[Array, "n k"],
    block: Int[Array, " k"],
    own: Float[Array, "k d"],
    error: Float[Array, "n d"],
    lack: Float[Array, " d"],
) -> Float[Array, "k d"]:
    """Return a draw of coefficients, by normal numbers for them, for noise and for fidelity."""
    variances, noise = _variances(grams, blocks, trials)
    by = variances[block][:, None]
    first = jnp.sqrt(by) * own
    wrong = trials.targets[:, None] - columns @ first.astype(columns.dtype)
    wrong -= jnp.sqrt(noise * trials.noise)[:, None] * error
    wrong -= _LACK * trials.lacking[:, None] * lack
    kernel = (columns * by.T.astype(columns.dtype)) @ columns.T  # the large product in float32
    kernel = _with_noise(kernel.astype(by.dtype), trials, noise)
    factor = jax.scipy.linalg.cho_factor(kernel, lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, trials.present[:, None] * wrong)
    return first + by * (columns.T @ solved.astype(columns.dtype))


def _with_noise(
    kernel: Float[Array, "n n"], trials: _Trials, noise: Float[Array, ""]
) -> Float[Array, "n n"]:
    kernel += _LACK**2 * trials.lacking[:, None] * trials.lacking[None, :]
    return kernel + jnp.diag(jnp.where(trials.present > 0, noise * trials.noise, 1.0))


def _variances(
    grams: Float[Array, "b m m"], blocks: _Blocks, trials: _Trials
) -> tuple[Float[Array, " b"], Float[Array, ""]]:
    """Return the likely variances of each block and of the noise, by the best trials."""
    count, (counts, first) = grams.shape[-1], blocks
    few = _Trials(*(rows[:count] for rows in trials))
    units = jnp.where(few.present > 0, few.noise, 1.0)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        variances, noise = state
        kernel = _with_noise(jnp.tensordot(variances, grams, 1), few, noise)
        factor = jax.scipy.linalg.cho_factor(kernel, lower=True)
        inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(count))
        solved = inverse @ few.targets
        fit = jnp.einsum("bij,ij->b", grams, solved[:, None] * solved[None, :] - inverse)
        summed = jnp.maximum(variances * counts + variances**2 * fit, 0.0)
        each = noise * units
        error = ((each * solved) ** 2 + each - each**2 * jnp.diagonal(inverse)) / units
        spread = jnp.sum(few.present * error) + _COUNTS * _NOISE
        spread /= jnp.sum(few.present) + _COUNTS
        fresh = (summed + _COUNTS * first) / (counts + _COUNTS)
        return (fresh, jnp.maximum(spread, _FLOOR)), None

    estimates: tuple[Array, Array]
    estimates, _ = jax.lax.scan(step, (jnp.asarray(first), jnp.asarray(_NOISE)), length=_EM_STEPS)
    return estimates


def _padded_size(count: int, least: int) -> int:
    """Return the least power of two that is at least `count` and `least`."""
    return max(least, 1 << (count - 1).bit_length())


def _padded(rows: ndarray, *shape: int) -> ndarray:
    padded = np.zeros(shape, rows.dtype)
    padded[tuple(map(slice, rows.shape))] = rows
    return padded
