"""Random numbers by key that cost next to nothing to compile: a hash of the number's place.

jax's own generator takes XLA a second to compile for each place where it is used, and a strategy
uses it in a dozen. For mutations and screening this is as good: seeds come from a key of jax, and
numbers are the finaliser of MurmurHash3 over seed and place. The same on every machine.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from gptailor.search.space.genome import Genome
from gptailor.search.space.table import Table, canonical, drawn_sizes, exact

Key = Array
Seed = UInt32[Array, " two"]

GOLDEN = 0x9E3779B9
"""2³² over the golden ratio: what keeps neighbouring places apart."""


def seeds(key: Key, many: int) -> tuple[Seed, ...]:
    """So many seeds of their own, by a key."""
    held = jax.random.key_data(key).astype(jnp.uint32)
    place = jnp.arange(2 * many, dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    numbers = scrambled(scrambled(place + held[0]) ^ scrambled(held[-1] + jnp.uint32(GOLDEN)))
    return tuple(numbers.reshape(many, 2))


def uniform(seed: Seed, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Numbers between 0 and 1, both left out."""
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    numbers = scrambled(scrambled(place + seed[0]) ^ seed[1]) >> 9
    return ((numbers.astype(jnp.float32) + 0.5) / (1 << 23)).reshape(shape)


def normal(seed: Seed, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Normal numbers."""
    return jax.scipy.special.ndtri(uniform(seed, shape))


def gumbel(seed: Seed, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Numbers of the Gumbel distribution."""
    return -jnp.log(-jnp.log(uniform(seed, shape)))


def drawn(table: Table, seed: Seed, many: int) -> Genome:
    """Random canonical genomes: every size, every set of a size, option and real alike."""
    b, c, r = len(table.group), len(table.options), len(table.at_reals)
    open_sizes = len(table.ranged)
    numbers = uniform(seed, (many, b + c + r + open_sizes))
    options = jnp.asarray(table.options)

    def one(row: Float[Array, " k"]) -> Genome:
        picks = jnp.floor(row[b : b + c] * options).astype(jnp.int32)
        bits = exact(table, row[:b] - 0.5, drawn_sizes(table, row[b + c + r :]))
        return canonical(table, Genome(bits, picks, row[b + c : b + c + r]))

    return jax.vmap(one)(numbers)


def scrambled(numbers: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        numbers = (numbers ^ (numbers >> shift)) * jnp.uint32(multiplier)
    return numbers ^ (numbers >> 16)
