"""The metadata of a GGUF file, under its architecture's keys and with checked numbers."""

import math
import struct
from typing import NoReturn, final

from gptailor.checkpoint.files import CheckpointError, shown
from gptailor.checkpoint.formats.gguf.header import GgufValue, Header


@final
class FileFacts:
    """The facts of a file about its architecture `name`, with the sizes of the model.

    `hidden` is the width of the stream, `wide` the width within a feed-forward block, `head` the
    width of a head; `heads` and `kv` are the numbers of heads of queries and of keys.
    """

    def __init__(self, header: Header, name: str) -> None:
        self.header = header
        self.name = name
        first = "blk.0."
        self.first_layer = frozenset(
            each.removeprefix(first) for each in header.tensors if each.startswith(first)
        )
        self.hidden = self.count("embedding_length")
        self.heads = self.count("attention.head_count")
        self.kv = self.count("attention.head_count_kv", self.heads)
        self.head = self.count("attention.key_length", self.hidden // self.heads)
        self.layers = self.count("block_count")
        self.wide = self.count("feed_forward_length")

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise CheckpointError (C109) about the file."""
        raise CheckpointError("C109", message, self.header.path, help)

    def has(self, *names: str) -> bool:
        """Return whether the first layer has all of these tensors: `attn_q.bias`."""
        return self.first_layer.issuperset(names)

    def fact(self, key: str) -> GgufValue | None:
        """Return the value of a key of the architecture's, None for a missing key."""
        return self.header.facts.get(f"{self.name}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number; a list of one number counts as that number."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, tuple) and len({*map(repr, value)}) == 1:
            value = value[0]
        if type(value) is not int or not 0 < value < 2**31:
            message = f"'{self.name}.{key}' is {shown(value)}"
            self.refuse(f"{message}, and should be a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number, with the fewest digits that mean it in float32."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"'{self.name}.{key}' is {shown(value)}, and should be a number")
        if not math.isfinite(value) or value <= 0:
            self.refuse(f"'{self.name}.{key}' is {value!r}, and should be positive")
        return short_single(float(value))


def short_single(value: float) -> float:
    """Return the number of the fewest digits that equals this number in float32.

    For 9.99999974e-06 it is 1e-05.
    """
    single = struct.pack("<f", value) if abs(value) < 3e38 else b""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if single and struct.pack("<f", short) == single:
            return short
    return value
