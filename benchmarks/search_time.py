"""Time of the optimiser itself: building a space, compiling, ask and tell; also SMAC3's."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.search_landscapes import SHAPES, space
from benchmarks.search_parameters import Parameters
from benchmarks.search_peers import PROCESS, Elsewhere, Ours, one_of
from gptailor.plan.registry import STRATEGIES
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space
from gptailor.searching.strategies import strategy_of

SHAPE = "40/3/10"
TOLD, ASKS = 100, 25
"""Trials told before the measurement, and measured asks."""
FEW = 10
"""Asks of SMAC3, which is slow."""
LIMIT = 600
"""Time limit in seconds of building SMAC3's space."""


def table(smac: str | None) -> Iterator[str]:
    """Yield rows: seconds of the wall clock, and CPU seconds for work in this process."""
    yield "| what | seconds | of the processor |"
    yield "|---|--:|--:|"
    wall, cpu = time.perf_counter(), time.process_time()
    found = space(*SHAPES[SHAPE])
    yield row("building the space", wall, cpu)
    one = Ours(strategy_of("random"), found, 0)
    parts = [one.ask()[0] for _ in range(TOLD // one.strategy.population)]
    told = Genome(*(np.concatenate(genes) for genes in zip(*parts, strict=True)))
    values = np.random.default_rng(0).normal(size=len(told.bits))
    for name in STRATEGIES:
        yield from _ours(name, found, told, values)
    if smac is not None:
        yield from _smac(smac, found, told, values)


def row(what: str, wall: float, cpu: float, by: int = 1) -> str:
    """Return a line: the time since a start, for each of a number of calls."""
    seconds = (time.perf_counter() - wall) / by, (time.process_time() - cpu) / by
    return f"| {what} | {seconds[0]:.4f} | {seconds[1]:.4f} |"


def _ours(name: str, of: Space, told: Genome, values: np.ndarray) -> Iterator[str]:
    wall, cpu = time.perf_counter(), time.process_time()
    one = Ours(strategy_of(name), of, 0, capacity=2 * TOLD)
    one.tell(told, values, np.ones(len(values)))
    population, shares = one.ask()
    one.tell(population, np.zeros(len(shares)), shares)
    yield row(f"{name}: compiling, the first ask and tell", wall, cpu)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(ASKS):
        population, shares = one.ask()
        one.tell(population, np.zeros(len(shares)), shares)
    yield row(f"{name}: ask and tell, a trial", wall, cpu, ASKS * len(shares))


def _smac(python: str, of: Space, told: Genome, values: np.ndarray) -> Iterator[str]:
    said = {"parameters": Parameters(of, slots=True).described(), "seed": 0, "trials": 200}
    with tempfile.TemporaryDirectory() as folder:
        line = json.dumps({**said, "folder": folder, "forbid": True}) + "\n"
        command = [python, str(PROCESS), "SMAC3"]
        try:
            done = subprocess.run(
                command, input=line, capture_output=True, text=True, check=True, timeout=LIMIT
            )
            seconds = json.loads(done.stdout)["seconds"]
            yield f"| SMAC3: building the space with its forbidden clauses | {seconds:.1f} | |"
        except subprocess.TimeoutExpired:
            yield f"| SMAC3: building the space with its forbidden clauses | over {LIMIT} | |"
    one = Elsewhere(of, 0, "SMAC3", python, 2 * TOLD)
    for i in range(100):
        one.tell(Genome(*(genes[None] for genes in one_of(told, i))), values[i : i + 1], np.ones(1))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(FEW):
        population, shares = one.ask()
        one.tell(population, np.zeros(1), shares)
    yield row("SMAC3: ask and tell, a trial, after 100", wall, cpu, FEW)
    one.close()
