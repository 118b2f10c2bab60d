"""What a plan loses beside the base, which plans are compared by: `LossScale`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from gptailor.search.run.trials import Ledger, Trial


@final
class LossScale:
    """What plans lose beside the base, with errors, counted in a `unit`.

    That is the mean over the objectives that plans are compared by: in their unit where they have
    one, in % of the base's scores, or in spreads of the starting plans' scores. With `numbers` it
    is the mean over these objectives.
    """

    def __init__(self, ledger: "Ledger", numbers: Sequence[int] | None = None) -> None:
        self._ledger = ledger
        self._numbers = ledger.judging if numbers is None else tuple(numbers)
        self._aims = [ledger.aims[number] for number in self._numbers]
        units = {aim.unit for aim in self._aims}
        self._natural = len(units) == 1 and not units & {"", "accuracy"}
        self._shares = all(aim.scale == "base" for aim in self._aims)
        shared = (
            "% of the base's score" if self._shares else "spreads of the starting plans' scores"
        )
        self.unit = units.pop() if self._natural else shared

    def of(self, trial: "Trial") -> tuple[float, float] | None:
        """A trial's loss and its error, on its own samples; None where either score isn't known."""
        base = self._ledger.references.get(trial.samples)
        if trial.values is None or trial.stderrs is None or base is None:
            return None
        return self.beside(trial.values, trial.stderrs, base)

    def beside(
        self, values: Sequence[float], stderrs: Sequence[float], base: Sequence[float]
    ) -> tuple[float, float]:
        """What scores lose beside the base's on the same samples."""
        lost, variance = 0.0, 0.0
        for number, aim in zip(self._numbers, self._aims, strict=True):
            sign = 1 if aim.direction == "minimize" else -1
            width = self._width(number, base[number])
            lost += sign * (values[number] - base[number]) / width
            variance += (stderrs[number] / width) ** 2
        return lost / len(self._aims), math.sqrt(variance) / len(self._aims)

    def _width(self, number: int, base: float) -> float:
        """What one of an objective's scores is measured by."""
        if self._natural:
            return 1.0
        if self._shares:
            return abs(base) / 100 or 1.0
        finite = [one for one in self._ledger.spreads[number] if math.isfinite(one)]
        return (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
