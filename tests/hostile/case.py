"""A hostile file: its content, the required refusal, and the argument."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hostile:
    """A file's bytes, the code and the byte that its refusal names, and what breaks on it.

    `offset` is None where no single byte is wrong.
    """

    name: str
    content: bytes
    code: str
    offset: int | None
    why: str


@dataclass(frozen=True)
class HostileFolder:
    """A folder, made by `make`; its refusal names a `file` in it ("" for the folder itself)."""

    name: str
    make: Callable[[Path], object]
    code: str
    file: str
    offset: int | None
    why: str
