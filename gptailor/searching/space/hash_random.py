"""Random numbers as hashes of a key and a place. They are equal on all machines and releases.

The hash is the finaliser of MurmurHash3. It is good enough for drawing, mutating and screening
genomes, and needs no state.
"""

import math

import numpy as np
from jaxtyping import Float, UInt32
from numpy import ndarray

Key = UInt32[ndarray, " two"]

GOLDEN = np.uint32(0x9E3779B9)
"""2³² over the golden ratio: the factor that keeps neighbouring places apart."""
_WORD = 0xFFFFFFFF


def key_of(seed: int) -> Key:
    """Return the key of a seed."""
    return np.array([seed & _WORD, (seed >> 32) & _WORD], np.uint32)


def folded(key: Key, number: int) -> Key:
    """Return the key that a key and a number make."""
    return scrambled(scrambled(key_of(number) + GOLDEN + key) ^ scrambled(key[::-1] + GOLDEN))


def keys_of(key: Key, count: int) -> tuple[Key, ...]:
    """Split a key into `count` independent keys."""
    place = np.arange(2 * count, dtype=np.uint32) * GOLDEN
    numbers = scrambled(scrambled(place + key[:1]) ^ scrambled(key[1:] + GOLDEN))
    return tuple(numbers.reshape(count, 2))


def uniform(key: Key, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """Return numbers in (0, 1)."""
    place = np.arange(math.prod(shape), dtype=np.uint32) * GOLDEN
    numbers = scrambled(scrambled(place + key[:1]) ^ key[1:]) >> np.uint32(9)
    return ((numbers.astype(np.float32) + np.float32(0.5)) / np.float32(1 << 23)).reshape(shape)


def normal(key: Key, shape: tuple[int, ...]) -> Float[ndarray, "..."]:
    """Return normal numbers (Box and Muller, 1958)."""
    radius, angle = uniform(key, (2, math.prod(shape)))
    return np.asarray((np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).reshape(shape))


def scrambled(numbers: UInt32[ndarray, "..."]) -> UInt32[ndarray, "..."]:
    """Return the finaliser of MurmurHash3 for each number."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(multiplier)
    return np.asarray(numbers ^ (numbers >> np.uint32(16)))
