"""`python -m tests.search.clustered RUN`: a search on two workers of a local Ray, one killed."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ray

from gptailor.search.run.ray_workers import LOCAL, RayWorkers
from gptailor.search.run.schedule import Budget
from gptailor.search.run.trials import Trial
from tests.search.landscape import Counting, Drifting, search, setting


class Killing:
    """Kills the first worker while it is at work, once there are some trials."""

    def __init__(self, workers: RayWorkers) -> None:
        self.workers = workers
        self.first = ray.get(workers._workers[0].actor.ready.remote())
        self.killed = 0
        self.search: Any = None

    def told(self, trial: Trial) -> None:
        pass

    def asking(self) -> None:
        pass

    def began(self, plans: int, samples: int) -> None:
        if self.killed == 0 and trials(self) >= 6:
            os.kill(self.first, signal.SIGKILL)
            self.killed += 1


def trials(watch: Any) -> int:
    return len(watch.search.ledger.trials)


def main(folder: Path) -> None:
    chosen = setting(budget=Budget(14, 64, 64), strategy=Drifting(shares=(1.0, 1.0, 1.0)))
    with RayWorkers(partial(Counting, seconds=0.05), LOCAL, 2) as workers:
        watch = Killing(workers)
        found = search(folder, chosen, workers=workers, watch=watch)
        watch.search = found
        ended = found.run()
        second = ray.get(workers._workers[0].actor.ready.remote())
    said = {
        "ended": ended,
        "killed": watch.killed,
        "replaced": second != watch.first,
        "lost": workers._lost,
        "cost": found.ledger.cost(),
        "failed": sum(trial.values is None for trial in found.ledger.trials),
        "slots": [list(trial.wanted.key) for trial in found.ledger.trials],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
