"""Trials on a real local Ray with two workers; a process or a whole machine is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptailor.searching.run.workers import Lost, Task
from tests.searching.landscape import Counting, Simulated, record, search

ray_workers = pytest.importorskip(
    "gptailor.plugins.cluster.ray_workers", reason="ray isn't installed"
)
ROOT = Path(__file__).parents[3]


def ran(how: str, folder: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "HOME": str(folder),  # Ray keeps a token there
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_health_check_period_ms": "500",  # a machine that is gone is missed soon
        "RAY_health_check_failure_threshold": "12",  # and a slow one isn't
        "RAY_ADDRESS": "127.0.0.1:9",  # of another one's Ray: `local` begins its own
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.cluster.clustered", how, str(folder)],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trials of the same search on two workers that nothing happens to."""
    from tests.plugins.cluster.clustered import chosen

    folder = tmp_path_factory.mktemp("calm")
    result = search(folder, chosen(), workers=Simulated(Counting(), (1.0, 2.0)))
    result.run()
    return repr(record(result.ledger.trials))


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_the_study_is_the_same(tmp_path: Path, calm: str) -> None:
    outcome = ran("worker", tmp_path)
    assert (outcome["ended"], outcome["done"], outcome["lost"], outcome["late"]) == (
        "budget",
        1,
        1,
        0,
    )
    assert outcome["replaced"]
    assert outcome["trials"] == calm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ran("node", tmp_path_factory.mktemp("cluster"))


@pytest.mark.slow
@pytest.mark.thorough
def test_a_lost_machine_leaves_the_study_the_same(cluster: dict[str, Any], calm: str) -> None:
    """The search goes on with the worker that is left; a machine that comes is used again."""
    outcome = cluster
    assert (outcome["ended"], outcome["done"], outcome["lost"], outcome["late"]) == (
        "budget",
        2,
        1,
        0,
    )
    assert outcome["trials"] == calm


@pytest.mark.slow
@pytest.mark.thorough
def test_unlike_and_incomplete_machines_are_reported(
    cluster: dict[str, Any],
) -> None:
    assert cluster["refused"] == [
        "latency() can't be compared between 'a quick machine' and 'a slow machine'; "
        "use workers with this machine's kind of processor",
        "a worker can't start: there is no 'texts/maths.jsonl' here",
    ]
    assert cluster["alike"] == "budget"


def test_a_worker_is_replaced_if_its_result_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives, so that Ray doesn't raise `RayActorError`."""
    monkeypatch.setattr(ray_workers, "_connect", lambda address, count: None)
    monkeypatch.setattr(ray_workers, "_cpus", lambda count: 1)
    fresh = ray_workers._Worker(actor=None, begun=None)
    monkeypatch.setattr(ray_workers.RayWorkers, "_worker", lambda _: fresh)

    def lost(_: object) -> None:
        raise ray_workers.ray.exceptions.ObjectLostError("00", None, "")

    monkeypatch.setattr(ray_workers.ray, "get", lost)
    workers = ray_workers.RayWorkers(Counting, "local", 1)
    task = Task(7, (), 64, "bare", ())
    its = ray_workers._Worker(actor=None, begun=None, task=task, results=iter(["reference"]))
    workers._workers = [its]
    assert workers._event_of(its) == Lost(7)
    assert workers._workers == [fresh]


@pytest.mark.parametrize(
    ("machines", "count", "cpus"),
    [([8, 8], 2, 8), ([8, 8], 3, 4), ([0, 8], 1, 8), ([16, 4], 2, 8), ([1, 1], 3, 1), ([], 1, 1)],
)
def test_a_worker_has_its_share_of_the_processors(
    machines: list[int], count: int, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_processors", lambda: machines)
    assert ray_workers._cpus(count) == cpus


def test_a_missing_cluster_is_one_message() -> None:
    with pytest.raises(ray_workers.ClusterError, match=r"Ray is not available at '127\.0\.0\.1:1'"):
        ray_workers.RayWorkers(Counting, "127.0.0.1:1", 2)
