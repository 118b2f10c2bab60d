"""A search on two workers of Ray, some of it killed.

`python -m tests.plugins.cluster.clustered HOW RUN` runs it.

`worker`: of a local Ray a worker's process. `node`: of a cluster of three machines (a head and one
for each worker, each a raylet of its own) one with all its processes; another one comes later. Then
none is killed there; one isn't of the kind that is asked for, one can't begin.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from gptailor.plan.events import Progress
from gptailor.plan.faults import TailorError
from gptailor.plugins.cluster.ray_workers import LOCAL, ClusterError, RayWorkers
from gptailor.searching.run.budget import Budget
from gptailor.searching.search import Scored, SearchEvent
from tests.searching.landscape import (
    Counting,
    Drifting,
    SearchSetting,
    record,
    search,
    setting,
)


def chosen() -> SearchSetting:
    """The search that is disturbed."""
    return setting(budget=Budget(20, 64, 64), strategy=Drifting(shares=(1.0, 1.0, 1.0)))


class Disturbing:
    """Does things to a search's cluster, each after a number of trials, when a task begins."""

    def __init__(self, deeds: dict[int, Callable[[], object]]) -> None:
        self.deeds = deeds
        self.scored = 0
        self.done = 0

    def __call__(self, event: SearchEvent) -> None:
        self.scored += isinstance(event, Scored)
        due = [at for at in self.deeds if at <= self.scored]
        if isinstance(event, Progress) and event.what == "scoring" and due:
            self.deeds.pop(min(due))()
            self.done += 1


def process_of(workers: RayWorkers, number: int) -> int:
    result: int = ray.get(workers._workers[number].actor.ready.remote())
    return result


def worker_lost(folder: Path) -> dict[str, Any]:
    with RayWorkers(partial(Counting, seconds=0.05), LOCAL, 2) as workers:
        first = process_of(workers, 0)
        disturbing = Disturbing({6: lambda: os.kill(first, signal.SIGKILL)})
        outcome = disturbed(folder, workers, disturbing)
        return {**outcome, "replaced": process_of(workers, 0) != first}


def node_lost(folder: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        first, _ = (cluster.add_node(num_cpus=1) for _ in range(2))

        def lose() -> None:
            """Kill it, and wait until Ray knows: else a worker may begin there, and be lost too."""
            cluster.remove_node(first, allow_graceful=False)
            while any(node["NodeID"] == first.node_id and node["Alive"] for node in ray.nodes()):
                time.sleep(0.05)

        deeds = {6: lose, 11: lambda: cluster.add_node(num_cpus=1)}
        with RayWorkers(partial(Counting, seconds=0.3), cluster.address, 2) as workers:
            lost = disturbed(folder, workers, Disturbing(deeds))
        (apart := folder / "unlike").mkdir()
        return {**lost, **unlike(apart, cluster.address)}
    finally:
        cluster.shutdown()


def disturbed(folder: Path, workers: RayWorkers, disturbing: Disturbing) -> dict[str, Any]:
    result = search(folder, chosen(), workers=workers, on_event=disturbing)
    return {
        "ended": result.run(),
        "done": disturbing.done,
        "lost": workers._lost,
        "late": result.study.typed.late,
        "trials": repr(record(result.ledger.trials)),
    }


class Elsewhere(Counting):
    """An evaluator on another kind of machine."""

    machine = "a slow machine"


def lacking() -> Counting:
    """A machine that lacks something."""
    raise TailorError("there is no 'texts/maths.jsonl' here")


def unlike(folder: Path, address: str) -> dict[str, Any]:
    refused: list[str] = []
    for make, like in ((Elsewhere, "a quick machine"), (lacking, None)):
        try:
            with RayWorkers(make, address, 1, like=like) as workers:
                search(folder, chosen(), workers=workers).run()
        except ClusterError as error:
            refused.append(str(error))
    with RayWorkers(Elsewhere, address, 1, like=Elsewhere.machine) as workers:
        return {"refused": refused, "alike": search(folder, chosen(), workers=workers).run()}


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as `forked` ends orphans
    ways = {"worker": worker_lost, "node": node_lost}
    print(json.dumps(ways[sys.argv[1]](Path(sys.argv[2]))))
