"""Random numbers by key: a hash of the number's place. The same on every machine and release.

Numbers are the finaliser of MurmurHash3 over a key and the place; for drawing, mutating and
screening genomes this is as good as a generator with a state, and needs none.
"""

import math

import numpy as np
from jaxtyping import Float, UInt32
from numpy import ndarray

Key = UInt32[ndarray, " two"]

GOLDEN = np.uint32(0x9E3779B9)
"""2³² over the golden ratio: what keeps neighbouring places apart."""
_WORD = 0xFFFFFFFF


def key_of(seed: int) -> Key:
    """The key of a seed."""
    return np.array([seed & _WORD, (seed >> 32) & _WORD], np.uint32)


def folded(key: Key, number: int) -> Key:
    """Another key, by a key and a number."""
    place = np.array([number & _WORD, (number >> 32) & _WORD], np.uint32) + GOLDEN
    return scrambled(scrambled(place + key) ^ scrambled(key[::-1] + GOLDEN))


def keys_of(key: Key, many: int) -> tuple[Key, ...]:
    """So many keys, each of its own, by a key."""
    place = np.arange(2 * many, dtype=np.uint32) * GOLDEN
    numbers = scrambled(scrambled(place + key[:1]) ^ scrambled(key[1:] + GOLDEN))
    return tuple(numbers.reshape(many, 2))


def uniform(key: Key, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """Numbers between 0 and 1, both left out."""
    place = np.arange(math.prod(shape), dtype=np.uint32) * GOLDEN
    numbers = scrambled(scrambled(place + key[:1]) ^ key[1:]) >> np.uint32(9)
    return ((numbers.astype(np.float32) + np.float32(0.5)) / np.float32(1 << 23)).reshape(shape)


def normal(key: Key, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """Normal numbers (Box and Muller, 1958)."""
    radius, angle = uniform(key, (2, math.prod(shape)))
    found: ndarray = (np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).reshape(shape)
    return found


def gumbel(key: Key, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """Numbers of the Gumbel distribution."""
    found: ndarray = -np.log(-np.log(uniform(key, shape)))
    return found


def scrambled(numbers: UInt32[ndarray, "..."]) -> UInt32[ndarray, "..."]:
    """The finaliser of MurmurHash3."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(multiplier)
    found: ndarray = numbers ^ (numbers >> np.uint32(16))
    return found
