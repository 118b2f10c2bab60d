"""Offspring: mutants of parents, of two parents, and random genomes, a whole population at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptailor.search.genome import Active, Genome
from gptailor.search.strategies.chance import Seed, uniform
from gptailor.search.strategies.moves import CHANCES, Neighbourhood, crossed, filled, one_move
from gptailor.search.table import Table, active


def bred(
    table: Table,
    around: Neighbourhood,
    parents: Genome,
    often: Int[Array, " c"],
    seeds: tuple[Seed, Seed],
    most: int,
) -> Genome:
    """A mutant for each of `often`, which says by how many moves (`most` at most).

    Parents take turns. One mutant in `CROSSED` has two of them. Not canonical.
    """
    many, (move, cross) = len(often), seeds
    alive = jax.vmap(partial(active, table))(parents)
    whole = jax.vmap(partial(filled, around))(parents, alive)
    ranks = jnp.arange(many) % len(parents.bits)
    chosen, mixed = some_rows(whole, ranks), many // CROSSED
    if mixed:
        chance = uniform(cross, (mixed, 3 + len(table.group)))
        mates = some_rows(whole, (chance[:, 0] * len(parents.bits)).astype(jnp.int32))
        first = jax.tree.map(lambda gene: gene[:mixed], chosen)
        pairs = jax.vmap(partial(crossed, table, around))(first, mates, chance[:, 1:])
        chosen = jax.tree.map(lambda every, new: every.at[:mixed].set(new), chosen, pairs)
    lively = jax.tree.map(lambda mask: mask[ranks], alive)
    chances = uniform(move, (many, most, CHANCES))
    return jax.vmap(partial(_mutant, table, around))(chosen, lively, often, chances)


CROSSED = 8
"""One mutant in so many has two parents."""


def step_counts(seed: Seed, many: int, more: float | Float[Array, ""]) -> Int[Array, " c"]:
    """One step, and a geometric number of others, `more` in the mean."""
    return 1 + jnp.floor(jnp.log(uniform(seed, (many,))) / jnp.log(more / (1 + more))).astype(
        jnp.int32
    )


def some_rows(genomes: Genome, which: Int[Array, " k"]) -> Genome:
    """Some of a population."""
    return Genome(*(jnp.asarray(gene)[which] for gene in genomes))


def where(mask: Bool[Array, " k"], one: Genome, other: Genome) -> Genome:
    """Genomes of the one population or of the other."""
    return Genome(*(jnp.where(mask[:, None], a, b) for a, b in zip(one, other, strict=True)))


def joined_populations(one: Genome, other: Genome) -> Genome:
    """Both populations."""
    return Genome(*(jnp.concatenate([a, b]) for a, b in zip(one, other, strict=True)))


def _mutant(
    table: Table,
    around: Neighbourhood,
    genome: Genome,
    alive: Active,
    often: Int[Array, ""],
    chances: Float[Array, "most seven"],
) -> Genome:
    def step(held: Genome, one: tuple[Array, Array]) -> tuple[Genome, None]:
        changed = one_move(table, around, held, alive, one[1])
        return jax.tree.map(partial(jnp.where, one[0] < often), changed, held), None

    return jax.lax.scan(step, genome, (jnp.arange(len(chances)), chances))[0]
