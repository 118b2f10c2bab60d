"""The asks of a strategy, and the trials that it receives: `Asking`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float

from gptailor.searching.run.incumbent import expected_losses
from gptailor.searching.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial, as_numpy
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, folded, key_of, uniform
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import Table, canonical, distinct, features, sample

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy

INIT, ASK, WEIGHTS, DRAW, OTHER = range(5)
"""The uses of randomness; each has keys of its own."""

TOLD = (STARTS, RANDOM, SEARCH)
"""The phases of the trials that a strategy receives."""


_SPREAD_OF = 4
"""The fewest trials that show how far scores are apart."""


def draw_weights(key: Key, objectives: int) -> Float[np.ndarray, " m"]:
    """Draw a point of the simplex, uniformly; all of it where there is one objective."""
    steps = -np.log(uniform(key, (objectives,)))
    weights: np.ndarray = steps / steps.sum()
    return weights


def by_spread(
    weights: Float[np.ndarray, " m"], losses: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, " m"]:
    """Scale weights to losses in units of the distance from the best trial to the middle one.

    Else sizes, which differ more than scores, would decide alone. Failures (NaN) don't count.
    """
    finite = losses[np.isfinite(losses).all(axis=1)].astype(np.float64)
    if len(finite) < _SPREAD_OF:
        return weights
    spreads = np.median(finite, axis=0) - finite.min(axis=0)
    each = weights / np.where(spreads > 0, spreads, 1.0)
    scaled: np.ndarray = each / each.sum()
    return scaled


def told(
    strategy: "Strategy",
    table: Table,
    state: Any,
    genomes: Sequence[Genome],
    losses: Float[np.ndarray, "n m"],
    shares: Float[np.ndarray, " n"],
) -> Any:
    """Return a strategy's state after these trials, told in their order by full populations."""
    for start in range(0, len(genomes), strategy.population):
        some = slice(start, start + strategy.population)
        population = Genome(*map(np.stack, zip(*genomes[some], strict=True)))
        state = strategy.tell(table, state, population, losses[some], shares[some])
    return state


@runtime_checkable
class Allowed(Protocol):
    """The part of a space that a search may ask for."""

    def holds(self, genome: Genome) -> bool:
        """Return whether a search may ask for a genome."""

    def or_other(self, genome: Genome, key: Key) -> Genome:
        """Return the genome if a search may ask for it, else an allowed one, drawn by the key."""


@final
class Asking:
    """One strategy on one space.

    All randomness comes from `seed` and the number of the ask. Trials are told by the same calls,
    whether they were made now or in an earlier process: so the next ask is the same too. `prior`
    is the earlier measurement of the layers: the more, the worse it is if a layer leaves.
    Requested genomes are `within` bounds, where there are any.
    """

    def __init__(  # noqa: PLR0913 (the strategy and its settings)
        self,
        strategy: "Strategy",
        space: Space,
        ledger: Ledger,
        *,
        seed: int,
        capacity: int,
        prior: Sequence[float] | None = None,
        within: Allowed | None = None,
    ) -> None:
        self.strategy = strategy
        self.space = space
        self.within = within
        self.ledger = ledger
        self._key = key_of(seed)
        self._capacity = capacity
        self._influence = None if prior is None else np.array(prior, float)
        self._told = 0
        self.focus(space.table)

    @property
    def focused(self) -> bool:
        """Return whether the strategy searches some of the space's choices alone."""
        return self._table is not self.space.table

    def focus(self, table: Table) -> None:
        """Let the strategy search a table of the space from now on.

        It receives the trials with genomes that the table can have.
        """
        self._table = table
        key, objectives = self._keyed(INIT, 0), len(self.ledger.aims)
        self._state: Any = self.strategy.init(
            self._table, self._capacity, key, objectives, self._influence
        )

    def _keyed(self, purpose: int, number: int) -> Key:
        return folded(folded(self._key, purpose), number)

    def ask(self, number: int, asked_after: int) -> list[tuple[Genome, float]]:
        """Return an ask's genomes and shares, after this many trials; numbers of asks go up."""
        self._take_in(asked_after)
        weights = draw_weights(self._keyed(WEIGHTS, number), len(self.ledger.aims))
        if any(aim.size for aim in self.ledger.aims):
            full = [t for t in self.ledger.trials[:asked_after] if t.full]
            weights = by_spread(weights, self.ledger.losses(full))
        population, shares, self._state = self.strategy.ask(
            self._table, self._state, self._keyed(ASK, number), weights
        )
        genomes = (Genome(*genes) for genes in zip(*as_numpy(population), strict=True))
        key = self._keyed(OTHER, number)
        bounded = [self._bounded(genome, folded(key, n)) for n, genome in enumerate(genomes)]
        return list(zip(bounded, map(float, shares), strict=True))

    def distinct(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials with distinct plans, the first of each."""
        genomes = [trial.request.genome for trial in trials]
        return [trials[n] for n in distinct(self.space.table, genomes)]

    def random(self, number: int) -> Genome:
        """Return the random genome with a number."""
        key = self._keyed(DRAW, number)
        drawn = Genome(*(genes[0] for genes in sample(self._table, key, 1)))
        return self._bounded(drawn, folded(key, OTHER))

    def _bounded(self, genome: Genome, key: Key) -> Genome:
        return genome if self.within is None else self.within.or_other(genome, key)

    def _take_in(self, until: int) -> None:
        """Tell the trials since the last ask, in the order of asking, by full populations."""
        trials = self.ledger.trials[self._told : until]
        fresh = [t for t in trials if t.request.phase in TOLD and self._holds(t.request.genome)]
        fresh.sort(key=lambda trial: (TOLD.index(trial.request.phase), trial.request.key))
        self._told = until
        genomes = [trial.request.genome for trial in fresh]
        losses = expected_losses(self.ledger, fresh)  # one that was given up counts as if on all
        shares = np.array([t.request.samples / self.ledger.full for t in fresh], np.float32)
        self._state = told(self.strategy, self._table, self._state, genomes, losses, shares)

    def _holds(self, genome: Genome) -> bool:
        """Return whether a genome's plan is one of the table's."""
        if not self.focused:
            return True
        own, whole = canonical(self._table, genome), self.space.table
        asked, held = (features(whole, canonical(whole, g)) for g in (genome, own))
        return np.array_equal(asked, held)
