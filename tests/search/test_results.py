"""What a summary has: what random search would reach at the same cost, and who is a finalist."""

from typing import Any

import numpy as np
import pytest

from gptailor.plan.output_size import OutputSize
from gptailor.report.summary import Aim
from gptailor.search.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.search.space.genome import Genome
from gptailor.search.summary import ENOUGH, best_starts, expected, finalists

NOTHING = Genome(np.zeros(1, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.float32))


def ledger(values: list[float], searched: int) -> tuple[Ledger, list[Trial]]:
    """Random trials of a base that scores 1 by what is maximised, and trials that cost as much."""
    made = Ledger([Aim("accuracy", "maximize", "base")], full=4)
    made.references[4] = (1.0,)
    phases = [RANDOM] * len(values) + [SEARCH] * searched
    for number, phase in enumerate(phases):
        value = values[number] if number < len(values) else 0.0
        request = TrialRequest(phase, 0, number, "random", NOTHING, 4, "bare", 0)
        made.add(Trial(number, request, str(number), 1.0, (value,), (0.0,)))
    return made, made.of(RANDOM)


def test_it_is_near_what_as_many_normal_draws_reach() -> None:
    chance = np.random.default_rng(0)
    found = [
        expected(*ledger(list(map(float, chance.normal(0.5, 0.1, 16))), 184)) for _ in range(100)
    ]
    best = chance.normal(0.5, 0.1, (4000, 200)).max(axis=1).mean()
    assert np.mean([one for one in found if one is not None]) == pytest.approx(best, abs=0.02)


def test_from_few_plans_nothing_is_said() -> None:
    draws = [0.1, 0.2] * (ENOUGH // 2)
    assert expected(*ledger(draws, 10)) is not None
    assert expected(*ledger(draws[1:], 10)) is None


def test_all_that_what_was_found_is_compared_with_is_scored() -> None:
    """A starting plan that meets what is required is, behind better ones that don't."""

    class Sizes:
        def of(self, trial: Trial) -> OutputSize:
            return OutputSize(10, 20, 1, 4)

    made = Ledger([Aim("accuracy", "maximize", "base")], full=4)
    made.references[4] = (1.0,)
    for number in range(10):
        phase = SEARCH if number == 9 else STARTS
        request = TrialRequest(phase, 0, number, "one", NOTHING, 4, "bare", 0)
        value = 0.5 if number == 9 else 0.9 - 0.1 * number
        made.add(Trial(number, request, str(number), 1.0, (value,), (0.0,)))
    made.met = {("8", "bare"), ("9", "bare")}
    sizes: Any = Sizes()
    assert 8 not in {trial.number for trial in best_starts(made)}
    assert 8 in {trial.number for trial in finalists(made, sizes)}
