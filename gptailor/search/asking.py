"""A strategy that is asked and told, its state rebuilt from told trials: `Asking`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from gptailor.search.genome import Genome
from gptailor.search.ledger import Ledger
from gptailor.search.record import RANDOM, SEARCH, STARTS, Trial, as_numpy, at
from gptailor.search.scalarise import draw_weights
from gptailor.search.space import Space
from gptailor.search.table import sample

if TYPE_CHECKING:
    from gptailor.search.strategies.strategy import Strategy

INIT, ASK, WEIGHTS, DRAW = range(4)
"""What randomness is for; each has keys of its own."""

TOLD = (STARTS, RANDOM, SEARCH)
"""What strategies are told of."""


class Proposals(NamedTuple):
    """What an ask gave: genomes, and the share of all samples that is wanted for each."""

    genomes: tuple[Genome, ...]
    shares: tuple[float, ...]


@final
class Asking:
    """One strategy on one space.

    All randomness comes from `seed` and the number of the ask, and what was told goes in by the
    same calls whether it was told now or in a process before: the next ask is then the same too.
    """

    def __init__(
        self, strategy: "Strategy", space: Space, ledger: Ledger, *, seed: int, capacity: int
    ) -> None:
        self.strategy = strategy
        self.ledger = ledger
        table, objectives = space.table, len(ledger.aims)
        self._key = jax.random.key(seed)
        self._ask = jax.jit(lambda state, key, weights: strategy.ask(table, state, key, weights))
        self._tell = jax.jit(
            lambda state, genomes, values, shares: strategy.tell(
                table, state, genomes, values, shares
            )
        )
        self._sample = jax.jit(lambda key: sample(table, key))
        self._state: Any = strategy.init(table, capacity, self._keyed(INIT, 0), objectives)
        self._told = 0

    def _keyed(self, purpose: int, number: int) -> Any:
        return jax.random.fold_in(jax.random.fold_in(self._key, purpose), number)

    def ask(self, number: int, asked_after: int) -> Proposals:
        """The genomes of that ask, once so many trials were told; asks go up."""
        self._take_in(asked_after)
        weights = draw_weights(self._keyed(WEIGHTS, number), len(self.ledger.aims))
        population, shares, self._state = self._ask(self._state, self._keyed(ASK, number), weights)
        population = as_numpy(population)
        many = len(population.bits)
        return Proposals(tuple(at(population, i) for i in range(many)), tuple(map(float, shares)))

    def random(self, number: int) -> Genome:
        """A random genome; its number says which."""
        return as_numpy(self._sample(self._keyed(DRAW, number)))

    def _take_in(self, until: int) -> None:
        """Tell what was told since the last ask, in the order of asking.

        Whole populations, and the rest one by one: the functions are compiled for two sizes only.
        """
        fresh = [t for t in self.ledger.trials[self._told : until] if t.wanted.phase in TOLD]
        fresh.sort(key=lambda trial: (TOLD.index(trial.wanted.phase), trial.wanted.key))
        self._told = until
        many = self.strategy.population
        whole = len(fresh) - len(fresh) % many
        for start in range(0, whole, many):
            self._put(fresh[start : start + many])
        for trial in fresh[whole:]:
            self._put([trial])

    def _put(self, trials: Sequence[Trial]) -> None:
        genomes = [trial.wanted.genome for trial in trials]
        population = Genome(*(np.stack(genes) for genes in zip(*genomes, strict=True)))
        values = jnp.asarray(self.ledger.losses(trials))
        shares = jnp.asarray([trial.share for trial in trials], jnp.float32)
        self._state = self._tell(self._state, population, values, shares)
