"""Random draws that depend on a key and an entry's number alone: no state, no order, no chunks."""

import hashlib
import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
"""The constants of splitmix64 (Steele, Lea, Flood 2014) as signed integers."""


def key(seed: int, place: str, model: str) -> int:
    """A signed 64-bit key: the start of the sha256 of all three, each on a line."""
    text = f"{seed}\n{place}\n{model}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)


def kept_entries(
    number: int, offset: int, count: int, share: float, device: torch.device
) -> Bool[Tensor, " n"]:
    """Which of the entries from `offset` on are kept, each with the probability `share`.

    The entry's number goes through splitmix64's finaliser from `number`, the key; 53 of its bits
    are compared as an integer with share · 2^53, so that 1 keeps all.
    """
    index = torch.arange(offset + 1, offset + count + 1, dtype=torch.int64, device=device)
    bits = index.mul_(_GOLDEN).add_(number)
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(_FIRST)
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(_SECOND)
    bits.bitwise_xor_(_shifted(bits, 31))
    return _shifted(bits, 11) < math.ceil(share * 2**53)


def _shifted(bits: Int64[Tensor, " n"], by: int) -> Int64[Tensor, " n"]:
    """A shift to the right that brings in zeros, where torch's brings in the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)
