"""The budget of a search: `Budget`."""

from dataclasses import dataclass
from typing import Any, final

from gptailor.plan.stage import Stage
from gptailor.searching.run.records import BridgedTrials
from gptailor.searching.settings import Settings

FINALISTS = 5
"""The default of the most trials that are evaluated once more, bridged or healed."""
_STARTING = 64
"""Room for starting plans on top of the budget: more, as trials on few samples cost less."""
_STRATEGY = 1 / 2
"""The least share of the budget for plans that the strategy asks for, recipes among them."""
_ASKED_RECIPES = 0.2
"""The share of the budget for recipes that the strategy asks for."""
_TRIALS_A_RIVAL = 14
MOST_RIVALS = 4
"""The best merge and the best model alone, each with two usual cuts."""


@final
@dataclass(frozen=True)
class Budget:
    """The budget of a search: `trials` evaluations at full fidelity.

    A trial uses between `low` and `full` samples. With `heals` the plan is healed. `wanted` is the
    requested number of finalists, `measured` the cost before the first trial. With `separate`
    recipes are compared with nothing dropped, before cuts.
    """

    trials: int
    low: int
    full: int
    bridge: BridgedTrials | None = None
    heals: bool = False
    wanted: int | None = None
    measured: float = 0.0
    separate: bool = False

    @classmethod
    def of(cls, chosen: Settings, full: int) -> "Budget":
        """Return the budget of a search with this many samples at most for a trial."""
        low = chosen.fidelity[0] if chosen.fidelity else full
        return cls(chosen.trials, low, full, chosen.bridge, chosen.heals, chosen.finalists)

    @property
    def evaluations(self) -> float:
        """The evaluations that a search takes: `trials`, or at least the necessary ones.

        These are the measurements, one starting plan, random plans, and the plans of the end.
        """
        return max(self.trials, self.measured + 1 + self.random + self.kept)

    @property
    def capacity(self) -> int:
        """The most trials that a strategy receives, with starting plans on few samples."""
        return _STARTING + self.trials * (1 if self.low == self.full else 2)

    def record(self) -> dict[str, Any]:
        """Return the budget of a finished search, as a study notes it."""
        asked = self.heals or self.wanted is not None
        final = f"{self.finalists} {self.final}" if asked else None
        return {"trials": self.trials, "final": final}

    def samples(self, share: float) -> int:
        """Return the number of samples for a requested share."""
        return min(max(round(share * self.full), self.low), self.full)

    @property
    def starts(self) -> float:
        """The most that starting plans cost, with all recipes, without their measurements."""
        return self._plain_starts + self.asked_recipes

    @property
    def _plain_starts(self) -> float:
        """The most that plans cost that nobody asks a strategy for, without measurements."""
        others = self.measured + self.kept + self.random + self.rivals * self.low / self.full
        return max((1 - _STRATEGY) * self.trials - others, 1.0)

    @property
    def left(self) -> float:
        """The least evaluations that are left for the strategy; 0 without any."""
        return max(self.trials - self.measured - self.starts - self.random - self.kept, 0.0)

    @property
    def shortage(self) -> str:
        """A warning if the strategy gets no trial; empty if it gets one."""
        if self.evaluations > self.trials:
            taken = "measurements, one starting plan and finalists take more"
            return f"{taken} than 'trials {self.trials}', so the strategy gets no trial"
        if self.left >= 1:
            return ""
        return f"the strategy gets no trial: starting plans take all {self.trials:,}"

    @property
    def asked_recipes(self) -> float:
        """The most that recipes cost which a strategy asks for."""
        return _ASKED_RECIPES * self.trials if self.separate else 0.0

    @property
    def recipes(self) -> float:
        """The most that recipes cost which are compared with nothing dropped."""
        return self._plain_starts / 2 + self.asked_recipes if self.separate else 0.0

    @property
    def rivals(self) -> int:
        """The most plans that a person would write which are repaired for comparison."""
        if not self.separate or self.final is None:
            return 0
        return min(MOST_RIVALS, max(1, self.trials // _TRIALS_A_RIVAL))

    @property
    def random(self) -> int:
        """The number of random plans that are evaluated for comparison; rivals replace them."""
        return 0 if self.separate else max(min(self.trials // 12, 16), 1)

    @property
    def finalists(self) -> int:
        """The number of trials that are bridged, or bridged and healed, in the end."""
        if self.final is None:
            return 0
        return self.wanted or min(FINALISTS, max(self.trials // 10, 1))

    @property
    def kept(self) -> int:
        """The budget kept for the end: for finalists, and the best starting plan."""
        return self.finalists + 1 + self.rivals if self.finalists else 0

    @property
    def final(self) -> Stage | None:
        """The stage of the best trials' last evaluation; None without one."""
        if self.heals:
            return "healed"
        return "bridged" if self.bridge == "finalists" else None

    def stage(self, samples: int) -> Stage:
        """Return the stage that evaluates a trial with this many samples."""
        at_full = self.bridge == "from-full" and samples == self.full
        return "bridged" if self.bridge == "each" or at_full else "bare"
