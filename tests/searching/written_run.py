"""A RUN as a killed search leaves it, as a fixture too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptailor.plan.plan import Plan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.schedule import Budget
from gptailor.searching.run.trials import Ledger
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
    found.study.note("samples", "16..64")
    found.run()
    (folder / "space.tailor").write_text(landscape.TEXT)
    record = {
        **BEGUN,
        "objectives": [f"{aim.direction} {aim.name}" for aim in aims],
        "aims": [aim._asdict() for aim in aims],
        "layers": LAYERS,
        "strategy": "drifting",
        "trials": trials,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return found.ledger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A RUN of one objective."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_of(folder)


def named_storage(run: Path, folder: Path, storage: str) -> None:
    """Write a copy of a RUN whose `run.json` names a storage."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "storage": storage}))
