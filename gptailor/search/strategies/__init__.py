"""Ways to search: strategies that are asked for genomes and told fitness. JAX, on the CPU."""

import importlib
from typing import TYPE_CHECKING

__all__ = ["strategy", "surrogate"]

if TYPE_CHECKING:
    from gptailor.search.strategies.strategy import Strategy


def strategy_of(name: str) -> "Strategy":
    """The strategy of that name in the registry: the class `Name` of the module `name`."""
    module = importlib.import_module(f"{__name__}.{name}")
    made: Strategy = getattr(module, name.capitalize())()
    return made
