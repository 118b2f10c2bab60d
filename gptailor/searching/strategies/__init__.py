"""Search strategies, with an ask-and-tell interface. They use JAX on the CPU."""

import importlib
from typing import TYPE_CHECKING

from gptailor.plan.registry import STRATEGIES

__all__ = ["foreign", "posterior", "strategy", "surrogate"]

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy


def strategy_of(name: str) -> "Strategy":
    """Return a strategy: gptailor's own, the class `Name` of the module `name`, or a package's."""
    if (make := STRATEGIES[name].make) is not None:
        from gptailor.searching.strategies.foreign import Foreign

        made: Strategy = make()
        return Foreign(name, made.population, made)
    module = importlib.import_module(f"{__name__}.{name}")
    strategy: Strategy = getattr(module, name.capitalize())()
    return strategy
