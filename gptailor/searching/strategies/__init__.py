"""Search strategies, with an ask-and-tell interface. They use JAX on the CPU."""

import importlib
from typing import TYPE_CHECKING

__all__ = ["strategy", "surrogate"]

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy


def strategy_of(name: str) -> "Strategy":
    """Return the strategy with a name in the registry: the class `Name` of the module `name`."""
    module = importlib.import_module(f"{__name__}.{name}")
    strategy: Strategy = getattr(module, name.capitalize())()
    return strategy
