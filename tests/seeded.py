"""Random numbers that depend on a test's name alone."""

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
