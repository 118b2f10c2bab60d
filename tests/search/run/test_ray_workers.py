"""Trials on a real local Ray with two workers, one of which is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptailor.search.run.ray_workers import ClusterError, RayWorkers
from tests.search.landscape import Counting

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_its_trials_run_again(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.clustered", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["ended"], said["killed"], said["lost"]) == ("budget", 1, 1)
    assert said["replaced"]
    assert said["failed"] == 0
    assert said["cost"] == 14
    assert len(set(map(tuple, said["slots"]))) == len(said["slots"])


def test_a_cluster_that_is_not_there_is_one_message() -> None:
    with pytest.raises(ClusterError, match=r"Ray can't be had at '127\.0\.0\.1:1'"):
        RayWorkers(Counting, "127.0.0.1:1", 2)
