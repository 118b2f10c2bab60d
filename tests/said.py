"""What a command of gptailor came to."""

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]
