"""Strategies of other packages: their errors are named, and their asks are checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from gptailor.plan.faults import TailorError
from gptailor.plan.registry import STRATEGIES
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key
from gptailor.searching.space.table import Table, canonical
from gptailor.searching.strategies.strategy import Proposal, State, Strategy


@final
class StrategyError(TailorError):
    """A strategy of another package that fails, or that asks for genomes outside of the space."""

    exit_code = 3


@final
@dataclass(frozen=True)
class Foreign(Strategy):
    """A strategy of another package. Raises StrategyError, which names the package."""

    of: Any = None

    def _init(self, table: Table, key: Key, prior: Float[ndarray, " layers"] | None) -> Any:
        return self._called("_init", table, key, prior)

    def _ask(self, table: Table, state: State, key: Key, weights: Float[ndarray, " m"]) -> Proposal:
        asked = self._called("_ask", table, state, key, weights)
        if not isinstance(asked, tuple) or len(asked) != 3:
            got = f"{len(asked)} values" if isinstance(asked, tuple) else type(asked).__name__
            raise self._error(f"returned {got}, expected genomes, shares and the next own state")
        if words := broken_promise(table, asked[0], asked[1], self.population):
            raise self._error(f"returned an invalid result: {words}")
        genomes, shares, own = asked
        return genomes, shares, own

    def _tell(self, table: Table, state: State, archive: Any, new: Any) -> Any:
        return self._called("_tell", table, state, archive, new)

    def _called(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.of, method)(*arguments)
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}") from error

    def _error(self, words: str) -> StrategyError:
        package = STRATEGIES.package(self.name)
        return StrategyError(f"the strategy '{self.name}' of {package} {words}")


def broken_promise(table: Table, population: Any, shares: Any, many: int) -> str:
    """Return why an ask isn't `many` canonical genomes of a space with shares in (0, 1], or ''."""
    promises = _promises(table, population, shares, many)
    return next((words for holds, words in promises if not holds), "")


def _promises(
    table: Table, population: Any, shares: Any, many: int
) -> Iterator[tuple[object, str]]:
    """Yield each promise: whether it holds, and the words if it doesn't."""
    columns = (len(table.group), len(table.options), len(table.at_reals))
    yield isinstance(population, Genome), f"expected a Genome, got {type(population).__name__}"
    shapes = [np.shape(genes) for genes in population]
    words = f"expected {many} genomes of {columns} genes, got {shapes}"
    yield shapes == [(many, n) for n in columns], words
    for number, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
        on = population.bits[:, table.group == number].sum(axis=1)
        yield ((low <= on) & (on <= high)).all(), "a genome drops too many or too few layers"
    _, picks, reals = population
    picked = ((picks >= 0) & (picks < table.options)).all()
    yield picked and ((reals >= 0) & (reals <= 1)).all(), "a gene is out of its bounds"
    pairs = zip(canonical(table, population), population, strict=True)
    yield all(np.array_equal(a, b) for a, b in pairs), "a genome isn't canonical"
    words = f"expected {many} shares in (0, 1], got {shares!r:.60}"
    yield np.shape(shares) == (many,) and ((shares > 0) & (shares <= 1)).all(), words
