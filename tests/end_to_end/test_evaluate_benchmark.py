"""What the figures of benchmarks/evaluate.py rest on: its plans are good, and it runs."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import gptailor
from benchmarks.evaluate import child_of, parent_of
from gptailor.plan.faults import errors
from tests.tiny import tiny_model

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
def test_it_prints_its_figures() -> None:
    small = {"shape": "tiny", "windows": "2", "length": "16", "rounds": "1", "trials": "3"}
    flags = [part for name, value in small.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(ROOT / "benchmarks/evaluate.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert "over a bare forward" in done.stdout
