"""A RUN as a killed search leaves it, as a fixture too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.records import Aim, ResultNote, RunSizes
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.trials import Ledger
from gptailor.searching.space.space import Space
from tests.searching import landscape

BEGUN: dict[str, Any] = {
    "version": "0.3.0", "plan": "space.tailor", "fidelity": None, "seed": 0,
    "strategy": "surrogate", "bridge": None, "prefer": None, "heals": False,
    "finalists": None, "race": True, "requires": [], "device": "cpu",
    "dtype": None, "packages": [], "layers": 26, "tied": [],
}  # fmt: skip
"""Settings at the beginning of a search."""
NLL, ACCURACY = landscape.NLL._replace(unit="nats"), landscape.ACCURACY
LAYERS = 8


def run_of(
    folder: Path,
    aims: tuple[Aim, ...] = (NLL,),
    trials: int = 40,
    fails: Callable[[Plan], bool] = lambda plan: False,
) -> Ledger:
    """Write a RUN as a killed search leaves it; return its trials."""
    chosen = landscape.setting(aims=aims, budget=Budget(trials, 16, 64))
    evaluator = landscape.Counting(aims, fails=fails)
    result = landscape.search(folder, chosen, evaluator)
    result.run()
    (folder / "run.json").write_text(json.dumps(record_of(aims, trials, chosen.space)))
    return result.ledger


SIZE = OutputSize(6_000_000, 12_000_000, 64, 6)


def ended(folder: Path, ledger: Ledger, held: float = 0.1) -> None:
    """Note the end of a search; on held-out samples each score is so much higher."""
    study, base = landscape.study_of(folder), ledger.references[ledger.full]
    plans = {t.plan: t.values for t in ledger.trials if t.values} | {"base": base}
    moved = {plan: tuple(value + held for value in values) for plan, values in plans.items()}
    errors = (0.05,) * len(base)
    study.note("held_out", {plan: Scores(values, errors) for plan, values in moved.items()})
    study.note("sizes", RunSizes(base=SIZE, plans=dict.fromkeys(plans, SIZE)))
    numbers = (8,) * len(base)
    study.note("result", ResultNote(ended="budget", held=numbers, required=None, left_out=(),
                                    beyond=()))  # fmt: skip


def record_of(aims: tuple[Aim, ...], trials: int, space: Space) -> dict[str, Any]:
    """Return the content of `run.json`."""
    return {
        **BEGUN,
        "objectives": [f"{aim.direction} {aim.name}" for aim in aims],
        "aims": [aim._asdict() for aim in aims],
        "layers": LAYERS,
        "strategy": "drifting",
        "trials": trials,
        "space": landscape.TEXT,
        "low": 16,
        "full": 64,
        "limits": [],
        "digests": {"space": space.digest, "models": {}, "data": {}},
        "starts": 4,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A RUN of one objective."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_of(folder)
