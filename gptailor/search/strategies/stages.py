"""Which trials have earned more samples.

Stages have no generations (as in ASHA, arXiv 1810.05934), so that no trial waits for another: a
genome goes up as soon as it is among the best of its stage.
"""

from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gptailor.search.genome import Genome
from gptailor.search.strategies.breeding import some_rows, where
from gptailor.search.strategies.strategy import Archive, fingerprints, genes, told

_ROUNDING = 0.02
"""What rounding to whole samples takes of a share, at most."""


def staged(
    archive: Archive,
    found: Float[Array, " capacity"],
    offspring: Genome,
    shares: tuple[float, ...],
    rise: int,
) -> tuple[Genome, Float[Array, " n"]]:
    """What an ask gives: first those that go up a stage, then offspring on the lowest share.

    `found` is the fitness of the archive's trials. Of each stage one in `rise` goes up. A trial is
    at the highest stage whose share it reaches: a search may have no sample so small.
    """
    many = len(offspring.bits)
    above, stage = _rising(archive, found, shares, rise)
    ranks = jnp.argsort(-stage, stable=True)[:many]
    ranks = jnp.resize(ranks, (many,))
    goes = (stage[ranks] > 0) & (jnp.arange(many) < len(stage))
    asked = jnp.where(goes, above[ranks], shares[0])
    return where(goes, some_rows(archive.genomes, ranks), offspring), asked


def _rising(
    archive: Archive, found: Float[Array, " n"], shares: tuple[float, ...], rise: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The share that each trial is to be tried on next, and the stage that it goes to; or 0."""
    above, stage = jnp.ones(len(found)), jnp.zeros(len(found), jnp.int32)
    known = fingerprints(genes(archive.genomes))
    same = (known[:, None] == known[None, :]) & told(archive)[None, :]
    highest = jnp.max(jnp.where(same, archive.fidelity[None, :], 0.0), axis=1)
    for number, (share, higher) in enumerate(pairwise(shares)):
        reaches = (archive.fidelity >= share - _ROUNDING) & (archive.fidelity < higher - _ROUNDING)
        there = jnp.isfinite(found) & reaches
        rank = jnp.sum(there[None, :] & (found[None, :] < found[:, None]), axis=1)
        good = there & (rank < jnp.sum(there) // rise) & (highest <= archive.fidelity)
        above, stage = jnp.where(good, higher, above), jnp.where(good, number + 1, stage)
    return above, stage
