"""A distribution over genomes that moves towards the good ones, by the score function.

Logits for bits and options, a Gaussian for each real; of a set the bits with the highest logits
plus Gumbel noise, as many as it has (Kool et al., 2019); where that is open, those that come out
above 0, within its bounds. A told genome pulls by its rank among the
trials of its fidelity, so that the scale of fitness counts for nothing; optax makes the steps.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped] # it has no stubs
from jaxtyping import Array, Float

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, active, canonical, exact
from gptailor.search.strategies.hash_random import Key, gumbel, normal, seeds
from gptailor.search.strategies.strategy import (
    DRAWN_PER_ASKED,
    Archive,
    Proposal,
    State,
    Strategy,
    newest,
)

_WIDEST, _NARROWEST = 0.4, 0.02
"""Deviations of a real, at first and in the end."""
_SURE = 4.0
"""Logits stay within this, so that nothing dies out."""


@final
class Shape(NamedTuple):
    """The distribution: logits of bits and of all options, means and log deviations of reals."""

    bits: Float[Array, " b"]
    options: Float[Array, " o"]
    means: Float[Array, " r"]
    widths: Float[Array, " r"]


@final
class Moving(NamedTuple):
    """The distribution, and the optimiser's state."""

    shape: Shape
    steps: optax.OptState


@final
@dataclass(frozen=True)
class Distribution(Strategy):
    """Natural-looking steps of a product distribution; `rate` is Adam's."""

    name: str = "distribution"
    population: int = 4
    rate: float = 0.15

    def _init(self, table: Table, key: Key) -> Moving:
        shape = Shape(
            jnp.zeros(len(table.group)),
            jnp.zeros(len(table.option_pick)),
            jnp.full(len(table.at_reals), 0.5),
            jnp.full(len(table.at_reals), jnp.log(_WIDEST)),
        )
        return Moving(shape, optax.adam(self.rate).init(shape))

    def _ask(self, table: Table, state: State, key: Key, weights: Float[Array, " m"]) -> Proposal:
        found = _drawn(table, state.own.shape, key, DRAWN_PER_ASKED * self.population)
        return newest(state.archive, found, self.population), jnp.ones(self.population), state.own

    def _tell(self, table: Table, state: State, archive: Archive, new: Archive) -> Moving:
        shape, steps = state.own
        slopes = jax.vmap(partial(_slope, table, shape))(new.genomes)
        pulls = _pulls(archive, new)
        downhill = jax.tree.map(lambda slope: -jnp.tensordot(pulls, slope, 1), slopes)
        change, steps = optax.adam(self.rate).update(downhill, steps, shape)
        return Moving(_bounded(optax.apply_updates(shape, change)), steps)


def _drawn(table: Table, shape: Shape, key: Key, many: int) -> Genome:
    bits, other, picks, reals = seeds(key, 4)
    b, o, r = len(shape.bits), len(shape.options), len(shape.means)
    group = jnp.asarray(table.group)
    free = group < 0
    if len(table.low):
        free |= (jnp.asarray(table.low) < jnp.asarray(table.high))[group]
    noise = gumbel(bits, (many, b)) - jnp.where(free, gumbel(other, (many, b)), 0.0)
    scores = shape.options + gumbel(picks, (many, o))
    values = shape.means + jnp.exp(shape.widths) * normal(reals, (many, r))
    drawn = Genome(
        jax.vmap(partial(exact, table))(shape.bits + noise),
        jax.vmap(partial(highest, table))(scores),
        jnp.clip(values, 0.0, 1.0),
    )
    return jax.vmap(partial(canonical, table))(drawn)


def highest(table: Table, scores: Float[Array, " o"]) -> Array:
    """The option of each pick with the highest score."""
    picks = len(table.options)
    of, value = jnp.asarray(table.option_pick), jnp.asarray(table.option_value)
    highest = jax.ops.segment_max(scores, of, picks)
    return jax.ops.segment_max(jnp.where(scores == highest[of], value, 0), of, picks)


def _slope(table: Table, shape: Shape, genome: Genome) -> Shape:
    """The gradient of a genome's log likelihood, of what is active in it."""
    alive = active(table, genome)
    of, value = jnp.asarray(table.option_pick), jnp.asarray(table.option_value)
    picked = jnp.asarray(genome.picks)[of] == value
    summed = jax.ops.segment_sum(jnp.exp(shape.options), of, len(table.options))
    width = jnp.exp(shape.widths)
    away = (genome.reals - shape.means) / width
    return Shape(
        jnp.where(alive.bits, genome.bits - _chances(table, shape.bits), 0.0),
        jnp.where(alive.picks[of], picked - jnp.exp(shape.options) / summed[of], 0.0),
        jnp.where(alive.reals, away, 0.0) * width,
        jnp.where(alive.reals, away**2 - 1, 0.0) * 0.1,
    )


def _chances(table: Table, logits: Float[Array, " b"]) -> Float[Array, " b"]:
    """How likely each bit is on: in a set nearly, by shifting its logits until they sum up."""
    group, low, high = (jnp.asarray(one) for one in (table.group, table.low, table.high))
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


def _pulls(archive: Archive, new: Archive) -> Float[Array, " n"]:
    """From 1 for the best of all trials at its fidelity to below 0 for the worse half."""
    total, others = jnp.sum(new.values, axis=-1), jnp.sum(archive.values, axis=-1)
    peers = jnp.isfinite(others)[None, :] & (archive.fidelity[None, :] == new.fidelity[:, None])
    many = jnp.maximum(jnp.sum(peers, axis=1), 1)
    behind = jnp.sum(peers & (others[None, :] < total[:, None]), axis=1) / many
    pull = jnp.exp(-6 * behind) - 0.15
    return jnp.where(jnp.isfinite(total), pull, -0.15)


def _bounded(shape: Shape) -> Shape:
    return Shape(
        jnp.clip(shape.bits, -_SURE, _SURE),
        jnp.clip(shape.options, -_SURE, _SURE),
        jnp.clip(shape.means, 0.0, 1.0),
        jnp.clip(shape.widths, jnp.log(_NARROWEST), jnp.log(_WIDEST)),
    )
