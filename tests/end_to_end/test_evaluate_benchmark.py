"""benchmarks/evaluate.py: its plans are valid, and it runs."""

import random
from pathlib import Path

import pytest

import gptailor
from benchmarks.evaluate import child_of, parent_of
from gptailor.plan.faults import errors
from tests.support.preloaded import Preloaded
from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("variants", [0, 2])
def test_trials_are_plans_of_one_size(variants: int, tmp_path: Path) -> None:
    models = [tiny_model("llama", tmp_path / str(n), seed=n, layers=8) for n in range(variants + 1)]
    chance = random.Random(0)
    genes = parent_of(8, chance)
    for _ in range(12):
        plan = gptailor.loads(genes.text(models))
        assert errors(gptailor.check(plan)) == []
        assert len(plan.drops) == 2
        child = child_of(genes, 8, chance)
        changed = (child.dropped != genes.dropped) + (child.shares != genes.shares)
        assert changed <= 1
        genes = child


@pytest.mark.slow
@pytest.mark.thorough
def test_the_benchmark_prints_its_figures(preloaded: Preloaded) -> None:
    small = {"shape": "tiny", "windows": "2", "length": "16", "rounds": "1", "trials": "3"}
    flags = [part for name, value in small.items() for part in (f"--{name}", value)]
    code, output, errors = preloaded.run(ROOT / "benchmarks/evaluate.py", *flags)
    assert code == 0, errors
    assert len(output.splitlines()) == 5
    assert "over a bare forward" in output
