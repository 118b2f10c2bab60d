"""A strategy that is asked and told: `Asking`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
from jaxtyping import Float

from gptailor.search.run.incumbent import expected_losses
from gptailor.search.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial, as_numpy
from gptailor.search.space.genome import Genome
from gptailor.search.space.hash_random import Key, folded, key_of, uniform
from gptailor.search.space.space import Space
from gptailor.search.space.table import distinct, sample

if TYPE_CHECKING:
    from gptailor.search.strategies.strategy import Strategy

INIT, ASK, WEIGHTS, DRAW, OTHER = range(5)
"""What randomness is for; each has keys of its own."""

TOLD = (STARTS, RANDOM, SEARCH)
"""What strategies are told of."""


_SPREAD_OF = 4
"""So many trials say how far scores are apart."""


def draw_weights(key: Key, objectives: int) -> Float[np.ndarray, " m"]:
    """A point of the simplex, every one alike; all of it where there is one objective."""
    steps = -np.log(uniform(key, (objectives,)))
    found: np.ndarray = steps / steps.sum()
    return found


def by_spread(
    weights: Float[np.ndarray, " m"], losses: Float[np.ndarray, "n m"]
) -> Float[np.ndarray, " m"]:
    """Weights for losses in units of what lies between the best trial and the middle one.

    Else sizes, which differ more than scores do, decide alone. Failures (NaN) say nothing.
    """
    known = losses[np.isfinite(losses).all(axis=1)].astype(np.float64)
    if len(known) < _SPREAD_OF:
        return weights
    spreads = np.median(known, axis=0) - known.min(axis=0)
    each = weights / np.where(spreads > 0, spreads, 1.0)
    found: np.ndarray = each / each.sum()
    return found


WithinBounds: TypeAlias = Callable[[Genome, Key], Genome]
"""A genome that a search may ask for, else another, drawn by a key, that it may."""


@final
class Asking:
    """One strategy on one space.

    All randomness comes from `seed` and the number of the ask, and what was told goes in by the
    same calls whether it was told now or in a process before: the next ask is then the same too.
    `prior` is what was measured of the layers before: the more, the worse it is if one leaves.
    """

    def __init__(  # noqa: PLR0913 (what is asked, and how)
        self,
        strategy: "Strategy",
        space: Space,
        ledger: Ledger,
        *,
        seed: int,
        capacity: int,
        prior: Sequence[float] | None = None,
        within: WithinBounds | None = None,
    ) -> None:
        self.strategy = strategy
        self.within = within or (lambda genome, key: genome)
        self.ledger = ledger
        self._table, self._key = space.table, key_of(seed)
        objectives = len(ledger.aims)
        known = None if prior is None else np.array(prior, float)
        key = self._keyed(INIT, 0)
        self._state: Any = strategy.init(self._table, capacity, key, objectives, known)
        self._told = 0

    def _keyed(self, purpose: int, number: int) -> Key:
        return folded(folded(self._key, purpose), number)

    def ask(self, number: int, asked_after: int) -> list[tuple[Genome, float]]:
        """The genomes of that ask once so many trials were told, with shares; asks go up."""
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
        found = [self.within(genome, folded(key, n)) for n, genome in enumerate(genomes)]
        return list(zip(found, map(float, shares), strict=True))

    def distinct(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials but those whose plans are like one before them."""
        return [trials[n] for n in distinct(self._table, [one.request.genome for one in trials])]

    def random(self, number: int) -> Genome:
        """A random genome; its number says which."""
        key = self._keyed(DRAW, number)
        drawn = Genome(*(genes[0] for genes in sample(self._table, key, 1)))
        return self.within(drawn, folded(key, OTHER))

    def _take_in(self, until: int) -> None:
        """Tell what was told since the last ask, in the order of asking, by whole populations."""
        fresh = [t for t in self.ledger.trials[self._told : until] if t.request.phase in TOLD]
        fresh.sort(key=lambda trial: (TOLD.index(trial.request.phase), trial.request.key))
        self._told = until
        many = self.strategy.population
        for start in range(0, len(fresh), many):
            self._put(fresh[start : start + many])

    def _put(self, trials: Sequence[Trial]) -> None:
        """Tell these; one that was given up as if on all that it was asked for."""
        genomes = [trial.request.genome for trial in trials]
        population = Genome(*(np.stack(genes) for genes in zip(*genomes, strict=True)))
        shares = np.array([t.request.samples / self.ledger.full for t in trials], np.float32)
        told = population, expected_losses(self.ledger, trials), shares
        self._state = self.strategy.tell(self._table, self._state, *told)
