"""The strategy `distribution` as commands need it, without JAX."""

from typing import TYPE_CHECKING

from gptailor.plan.registry import StrategySpec

if TYPE_CHECKING:
    from gptailor.plugins.distribution.strategy import Distribution


def _made() -> "Distribution":
    from gptailor.plugins.distribution.strategy import Distribution  # imports JAX

    return Distribution()


DISTRIBUTION = StrategySpec("moves a distribution over plans towards the good ones", _made)
