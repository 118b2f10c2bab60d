"""A RUN as a killed search leaves it, as a fixture too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptailor.plan.plan import Plan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.schedule import Budget
from gptailor.searching.run.trials import Ledger
from gptailor.searching.space.space import Space
from tests.searching import landscape
from tests.searching.summary_file import BEGUN

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
    found = landscape.search(folder, chosen, evaluator)
    found.run()
    (folder / "run.json").write_text(json.dumps(record_of(aims, trials, chosen.space)))
    return found.ledger


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
