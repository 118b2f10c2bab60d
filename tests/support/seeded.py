"""Random numbers that depend on a test's name alone, and the order of the tests."""

import hashlib
import os
import random
import sys
import zlib


def seed(name: str) -> None:
    """Seed the global generators of all libraries that are imported."""
    number = zlib.crc32(name.encode())
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(number)


ORDER = os.environ.setdefault("SEED", str(random.SystemRandom().getrandbits(32)))
"""Decides the order of the tests; the workers of pytest-xdist inherit it."""


def order(test: str) -> tuple[bytes, bytes]:
    """Return the place of a test: files are in random order, and the tests of each file."""
    file, name = (
        hashlib.sha256(f"{ORDER} {text}".encode()).digest()
        for text in (test.partition("::")[0], test)
    )
    return file, name
