"""The strategies by name."""

from collections.abc import Callable

from gptailor.search.strategies import evosax_peers
from gptailor.search.strategies.distribution import Distribution
from gptailor.search.strategies.evolution import Evolution
from gptailor.search.strategies.random import Random
from gptailor.search.strategies.strategy import Strategy
from gptailor.search.strategies.surrogate import Surrogate

DEFAULT = "surrogate"
"""The one that the measurements of `benchmarks/search.py` chose."""

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "surrogate": Surrogate,
    "evolution": Evolution,
    "distribution": Distribution,
    "random": Random,
    **evosax_peers.peers(),
}
