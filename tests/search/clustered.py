"""`python -m tests.search.clustered RUN`: a search on two workers of a local Ray, one killed."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import ray

from gptailor.search.run.ray_workers import LOCAL, RayWorkers
from gptailor.search.run.schedule import Budget
from gptailor.search.search import Scored, SearchEvent, Started
from tests.search.landscape import Counting, Drifting, search, setting


class Killing:
    """Kills the first worker while it is at work, once there are some trials."""

    def __init__(self, workers: RayWorkers) -> None:
        self.workers = workers
        self.first = ray.get(workers._workers[0].actor.ready.remote())
        self.killed = 0
        self.scored = 0

    def __call__(self, event: SearchEvent) -> None:
        self.scored += isinstance(event, Scored)
        if isinstance(event, Started) and self.killed == 0 and self.scored >= 6:
            os.kill(self.first, signal.SIGKILL)
            self.killed += 1


def main(folder: Path) -> None:
    chosen = setting(budget=Budget(14, 64, 64), strategy=Drifting(shares=(1.0, 1.0, 1.0)))
    with RayWorkers(partial(Counting, seconds=0.05), LOCAL, 2) as workers:
        killing = Killing(workers)
        found = search(folder, chosen, workers=workers, on_event=killing)
        ended = found.run()
        second = ray.get(workers._workers[0].actor.ready.remote())
    said = {
        "ended": ended,
        "killed": killing.killed,
        "replaced": second != killing.first,
        "lost": workers._lost,
        "cost": found.ledger.cost(),
        "failed": sum(trial.values is None for trial in found.ledger.trials),
        "slots": [list(trial.request.key) for trial in found.ledger.trials],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
