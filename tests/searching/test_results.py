"""A summary: random search at the same cost, and the finalists."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.registry import OBJECTIVES
from gptailor.searching import results
from gptailor.searching.folder import Folder, folder_at
from gptailor.searching.run.origin import RandomPlan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.searching.run_reading import read_run
from gptailor.searching.settings import Flags, settings
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import space_of
from gptailor.searching.summary import (
    ENOUGH,
    best_starts,
    expected,
    finalists,
    numbers_at_bounds,
)
from tests.searching.landscape import TEXT, study_of
from tests.searching.written_run import ended, run_of

NOTHING = Genome(np.zeros(1, np.bool_), np.zeros(0, np.int32), np.zeros(0, np.float32))


def ledger(values: list[float], searched: int) -> tuple[Ledger, list[Trial]]:
    """Random trials of a base with the accuracy 1, and the trials of equal cost."""
    made = Ledger([Aim("accuracy", "maximize", "base")], full=4)
    made.references[4] = (1.0,)
    phases = [RANDOM] * len(values) + [SEARCH] * searched
    for number, phase in enumerate(phases):
        value = values[number] if number < len(values) else 0.0
        request = TrialRequest(phase, 0, number, RandomPlan(), NOTHING, 4, "bare", 0)
        made.add(Trial(number, request, str(number), 1.0, (value,), (0.0,)))
    return made, made.of(RANDOM)


def test_the_expected_best_of_random_search_matches_normal_draws() -> None:
    chance = np.random.default_rng(0)
    results = [
        expected(*ledger(list(map(float, chance.normal(0.5, 0.1, 16))), 184)) for _ in range(100)
    ]
    best = chance.normal(0.5, 0.1, (4000, 200)).max(axis=1).mean()
    losses = [item for item in results if item is not None]
    assert np.mean(losses) == pytest.approx(100 * (1 - best), abs=2), "in % of the base's score"


def test_few_plans_give_no_expected_best() -> None:
    draws = [0.1, 0.2] * (ENOUGH // 2)
    assert expected(*ledger(draws, 10)) is not None
    assert expected(*ledger(draws[1:], 10)) is None


def test_all_compared_plans_are_scored() -> None:
    """A starting plan that meets the requirements is, behind better ones that don't."""
    made = Ledger([Aim("accuracy", "maximize", "base")], full=4)
    made.references[4] = (1.0,)
    for number in range(10):
        phase = SEARCH if number == 9 else STARTS
        request = TrialRequest(phase, 0, number, RandomPlan(), NOTHING, 4, "bare", 0)
        value = 0.5 if number == 9 else 0.9 - 0.1 * number
        made.add(Trial(number, request, str(number), 1.0, (value,), (0.0,)))
    made.met = {8, 9}
    assert 8 not in {trial.number for trial in best_starts(made)}
    assert 8 in {trial.number for trial in finalists(made, lambda trial: OutputSize(10, 20, 1, 4))}


def test_numbers_at_an_end_of_their_interval_are_named() -> None:
    text = (
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'
        "let m = 0.0..1.0\nlet c = 0.2..0.9\nlet t = 0.0..1.0\n"
        "L0 from math, code by task_arithmetic(weight=(m, c))\n"
        "L1 from any of math, code by task_arithmetic(t)\n"
    )
    space = space_of(gptailor.loads(text), 4)
    assert [real.name for real in space.reals] == ["let c", "let m", "let t"]
    genome = Genome(np.zeros(2, np.bool_), NOTHING.picks, np.array([0.0, 1.0, 0.0], np.float32))
    request = TrialRequest("search", 0, 0, RandomPlan(), genome, 4, "bare", 0)
    results = list(
        numbers_at_bounds(space, Trial(0, request, "plan", 1.0))
    )  # t: no model is chosen
    assert results == [("let c", 0.2, "low"), ("let m", 1.0, "high")], (
        "t says nothing where no model is chosen"
    )
    none = genome._replace(reals=np.array([0.5, 0.0, 0.0], np.float32))
    assert not list(numbers_at_bounds(space, Trial(0, replace(request, genome=none), "p", 1.0)))
    inside = genome._replace(reals=np.array([0.5, 0.999, 0.0], np.float32))
    assert not list(numbers_at_bounds(space, Trial(0, replace(request, genome=inside), "p", 1.0)))


def test_plans_are_noted_as_handed_over_after_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(tmp_path, run_of(tmp_path, trials=4))
    run, put = replace(read_run(tmp_path), study=study_of(tmp_path)), Folder.put
    chosen = settings(gptailor.loads(f'{TEXT}search {{ minimize nll("t.txt") }}\n'), Flags())

    def fail(self: Folder, name: str, content: str | bytes) -> Path:
        if name == "summary.md":
            raise CheckpointError("C303", "no space left", self.path)
        return put(self, name, content)

    with folder_at(tmp_path) as folder:
        monkeypatch.setattr(Folder, "put", fail)
        monkeypatch.setattr(results, "seen_from", lambda plan, place: plan)  # needs no models
        with pytest.raises(CheckpointError, match="no space left"):
            results.put_results(folder, run, {}, chosen, print)
    assert study_of(tmp_path).typed.handed is None
    assert list((tmp_path / "front").iterdir())


@pytest.mark.parametrize("bounds", [{}, {"context": 4096}, {"gguf": {}}])
def test_a_plan_is_picked_by_a_limit_alone(tmp_path: Path, bounds: dict[str, Any]) -> None:
    ended(tmp_path, run_of(tmp_path, trials=4))
    result = results.SearchResult("budget", read_run(tmp_path), None, tmp_path)
    with pytest.raises(ValueError, match="expected a limit: parameters, memory"):
        result.pick(**bounds)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"parameters": "abc"}, "'parameters': expected a number of parameters such as 110M"),
        ({"memory": "2 gigs"}, "'memory': expected a size such as 5GB or 500MiB, got '2 gigs'"),
        ({"loss": "little"}, "'loss': expected a loss such as 2% or 0.05, got 'little'"),
        ({"gguf": {"q4_k_m": "big"}}, "'gguf': expected a size such as 5GB or 500MiB, got 'big'"),
    ],
)
def test_a_limit_that_isnt_a_number_is_named(
    tmp_path: Path, bounds: dict[str, Any], message: str
) -> None:
    ended(tmp_path, run_of(tmp_path, trials=4))
    result = results.SearchResult("budget", read_run(tmp_path), None, tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        result.pick(**bounds)


def test_a_command_with_an_unregistered_objective_is_marked_as_unusable_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(tmp_path, run_of(tmp_path, trials=4))
    run = replace(read_run(tmp_path), study=study_of(tmp_path))
    monkeypatch.setitem(OBJECTIVES, "own", replace(OBJECTIVES["nll"], name="own"))
    monkeypatch.setitem(OBJECTIVES._modules, "own", "__main__")
    chosen = settings(gptailor.loads(f'{TEXT}search {{ minimize own("t.txt") }}\n'), Flags())
    monkeypatch.setattr(results, "seen_from", lambda plan, place: plan)  # needs no models
    monkeypatch.setattr(results, "lock_beside", lambda best: None)
    with folder_at(tmp_path) as folder:
        result = results.put_results(folder, run, {}, chosen, print)
    scored, compiled = result.commands
    words = "  # in Python, by gptailor.evaluate: no installed package has own"
    assert scored.endswith(f"--samples 64 --seed 0{words}")
    assert "#" not in compiled
    assert f"    {scored}\n" in (tmp_path / "summary.md").read_text()
