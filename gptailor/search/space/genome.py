"""One vector of genes, as JAX sees it: what an open plan's choices are closed with."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

Bits = Bool[Array | ndarray, "*n b"]
Picks = Int[Array | ndarray, "*n c"]
Reals = Float[Array | ndarray, "*n r"]


class Genome(NamedTuple):
    """Genes of three kinds, or of `n` genomes at once: a population has a leading axis.

    `bits` are positions that a `drop any` takes, statements with `maybe`, and members of an `any
    of`; `picks` are numbers of options; `reals` lie in 0..1 and stand for an interval.
    """

    bits: Bits
    picks: Picks
    reals: Reals


class Active(NamedTuple):
    """Which genes of a genome say anything; the others may have any value."""

    bits: Bits
    picks: Bool[Array | ndarray, "*n c"]
    reals: Bool[Array | ndarray, "*n r"]
