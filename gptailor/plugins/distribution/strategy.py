"""A distribution over genomes that moves towards good genomes, by the score function.

The distribution has logits for bits and options, and a Gaussian for each real. A set turns on the
bits with the highest logits plus Gumbel noise (Kool et al., 2019). A set with an open size turns on
the bits with a sum above 0, within its limits. A trial pulls by its rank among the trials of its
fidelity, so the scale of fitness has no effect. Optax makes the steps.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped] # it has no stubs
from jaxtyping import Array, Float, Int
from numpy import ndarray

from gptailor.searching.space.genome import Active, Genome
from gptailor.searching.space.hash_random import Key, keys_of, normal, uniform
from gptailor.searching.space.table import Table, active, canonical, exact
from gptailor.searching.strategies.strategy import (
    Archive,
    Proposal,
    State,
    Strategy,
    newest,
)

_WIDEST, _NARROWEST = 0.4, 0.02
"""The greatest and the least deviation of a real. A search begins with the greatest."""
_DRAWN_PER_ASKED = 8
"""Genomes drawn for each asked genome."""
_SURE = 4.0
"""The greatest absolute logit. The bound keeps each choice possible."""


@final
class Shape(NamedTuple):
    """The distribution: logits of bits and of all options, means and log deviations of reals."""

    bits: Float[ndarray | Array, " b"]
    options: Float[ndarray | Array, " o"]
    means: Float[ndarray | Array, " r"]
    widths: Float[ndarray | Array, " r"]


@final
class Moving(NamedTuple):
    """The distribution, and the optimiser's state."""

    shape: Shape
    steps: optax.OptState


@final
@dataclass(frozen=True)
class Distribution(Strategy):
    """Gradient steps of a product distribution; `rate` is Adam's learning rate."""

    name: str = "distribution"
    population: int = 4
    rate: float = 0.15

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Moving:
        shape = Shape(
            np.zeros(len(table.group), np.float32),
            np.zeros(len(table.option_pick), np.float32),
            np.full(len(table.at_reals), 0.5, np.float32),
            np.full(len(table.at_reals), np.log(_WIDEST), np.float32),
        )
        return Moving(shape, optax.adam(self.rate).init(shape))

    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        shape = Shape(*map(np.asarray, state.own.shape))
        drawn = _drawn(table, shape, key, _DRAWN_PER_ASKED * self.population)
        shares = np.ones(self.population, np.float32)
        return newest(table, state.archive, drawn, self.population), shares, state.own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Moving:
        size = max(self.population, 1 << (new.size - 1).bit_length())  # few shapes are compiled
        rows = np.arange(size) % new.size
        population = Genome(*(np.asarray(genes)[rows] for genes in new.genomes))
        pulls = np.where(np.arange(size) < new.size, _pulls(archive, new)[rows], 0.0)
        kinds = GeneKinds(table.group, table.low, table.high, table.option_pick, table.option_value)
        moved: Moving = _moved(
            self.rate, kinds, state.own, population, active(table, population), pulls
        )
        return moved


@final
class GeneKinds(NamedTuple):
    """The arrays of a table that a step uses."""

    group: Int[ndarray | Array, " b"]
    low: Int[ndarray | Array, " g"]
    high: Int[ndarray | Array, " g"]
    option_pick: Int[ndarray | Array, " o"]
    option_value: Int[ndarray | Array, " o"]


def _drawn(table: Table, shape: Shape, key: Key, count: int) -> Genome:
    bits, other, picks, reals = keys_of(key, 4)
    b, o, r = len(shape.bits), len(shape.options), len(shape.means)
    free = (table.group < 0) | np.isin(table.group, table.ranged)
    noise = _gumbel(bits, (count, b)) - np.where(free, _gumbel(other, (count, b)), 0.0)
    scores = np.asarray(shape.options + _gumbel(picks, (count, o)))
    values = shape.means + np.exp(shape.widths) * normal(reals, (count, r))
    drawn = Genome(
        exact(table, np.asarray(shape.bits + noise)),
        _highest(table, scores),
        np.clip(values, 0.0, 1.0).astype(np.float32),
    )
    return canonical(table, drawn)


def _gumbel(key: Key, shape: tuple[int, int]) -> Float[ndarray, "n k"]:
    """Return numbers of the Gumbel distribution."""
    return np.asarray(-np.log(-np.log(uniform(key, shape))))


def _highest(table: Table, scores: Float[ndarray, "n o"]) -> Int[ndarray, "n c"]:
    """Return the option of each pick with the highest score."""
    starts = np.cumsum(table.options) - table.options
    ends = zip(starts, table.options, strict=True)
    best = [np.argmax(scores[:, start : start + count], axis=1) for start, count in ends]
    return np.array(best, np.int32).reshape(len(starts), len(scores)).T


@partial(jax.jit, static_argnums=0)
def _moved(
    rate: float,
    kinds: GeneKinds,
    own: Moving,
    population: Genome,
    alive: Active,
    pulls: Float[Array, " n"],
) -> Moving:
    """Return the distribution after a step by the pulls of trials."""
    shape, steps = own
    slopes = jax.vmap(partial(_slope, kinds, shape))(population, alive)
    downhill = jax.tree.map(lambda slope: -jnp.tensordot(pulls, slope, 1), slopes)
    change, steps = optax.adam(rate).update(downhill, steps, shape)
    shape = optax.apply_updates(shape, change)
    bounded = Shape(
        jnp.clip(shape.bits, -_SURE, _SURE),
        jnp.clip(shape.options, -_SURE, _SURE),
        jnp.clip(shape.means, 0.0, 1.0),
        jnp.clip(shape.widths, jnp.log(_NARROWEST), jnp.log(_WIDEST)),
    )
    return Moving(bounded, steps)


def _slope(kinds: GeneKinds, shape: Shape, genome: Genome, alive: Active) -> Shape:
    """Return the gradient of a genome's log likelihood. It is 0 for inactive genes."""
    of, value = kinds.option_pick, kinds.option_value
    picked = genome.picks[of] == value
    summed = jax.ops.segment_sum(jnp.exp(shape.options), of, len(genome.picks))
    width = jnp.exp(shape.widths)
    away = (genome.reals - shape.means) / width
    return Shape(
        jnp.where(alive.bits, genome.bits - _chances(kinds, shape.bits), 0.0),
        jnp.where(alive.picks[of], picked - jnp.exp(shape.options) / summed[of], 0.0),
        jnp.where(alive.reals, away, 0.0) * width,
        jnp.where(alive.reals, away**2 - 1, 0.0) * 0.1,
    )


def _chances(kinds: GeneKinds, logits: Float[ndarray | Array, " b"]) -> Float[Array, " b"]:
    """Return the probability that each bit is on.

    The probability is approximate in a set. A shift of its logits makes the probabilities sum up to
    the set's size.
    """
    group, low, high = jnp.asarray(kinds.group), kinds.low, kinds.high
    if len(low) == 0:
        return jax.nn.sigmoid(logits)
    member = jnp.arange(len(low))[:, None] == group[None, :]
    sizes = jnp.sum(jnp.where(member, jax.nn.sigmoid(logits), 0.0), axis=1)
    sizes = jnp.clip(sizes, low, high)

    def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        lower, upper = ends
        middle = (lower + upper) / 2
        sums = jnp.sum(jnp.where(member, jax.nn.sigmoid(logits + middle[:, None]), 0.0), axis=1)
        less = sums < sizes
        return (jnp.where(less, middle, lower), jnp.where(less, upper, middle)), None

    bound = jnp.full(len(sizes), 4 * _SURE)
    (shift, _), _ = jax.lax.scan(halve, (-bound, bound), length=20)
    return jax.nn.sigmoid(logits + jnp.where(group < 0, 0.0, shift[group]))


def _pulls(archive: Archive, new: Archive) -> Float[ndarray, " n"]:
    """Return a pull for each trial: 1 for the best at its fidelity, below 0 for the worse half."""
    totals, archive_totals = new.values.sum(axis=-1), archive.values.sum(axis=-1)
    peers = np.isfinite(archive_totals)[None, :] & (
        archive.fidelity[None, :] == new.fidelity[:, None]
    )
    count = np.maximum(peers.sum(axis=1), 1)
    behind = (peers & (archive_totals[None, :] < totals[:, None])).sum(axis=1) / count
    return np.where(np.isfinite(totals), np.exp(-6 * behind) - 0.15, -0.15)
