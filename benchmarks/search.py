"""Measure the evaluations until a search finds a good plan, for gptailor and its peers.

    python benchmarks/search.py --synthetic                       # ten seeds, 200 evaluations each
    python benchmarks/search.py --synthetic --smac /smac/bin/python --peers surrogate SMAC3
    python benchmarks/search.py --synthetic --ablation --kinds pairs
    python benchmarks/search.py --table --seeds 20                # measured plans of a real family
    python benchmarks/search.py --time --smac /smac/bin/python    # time of an ask and a tell

Every searcher receives the same starting plans, which count as costs, and is asked for plans until
its evaluations are spent. An evaluation on a share of the samples costs that share. A searcher's
plan at any time is the best plan that it has scored on all samples. This plan is judged by its true
value. Figures of synthetic landscapes are the remaining shares of the gap between the best starting
plan and the optimum: 1 is the starting plan, 0 the optimum. Figures of the table are nats above its
optimum.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.search_landscapes import KINDS, SHAPES, Landscape, Synthetic, joined
from benchmarks.search_peers import Elsewhere, Factory, Ours, Searcher, ablations, peers
from benchmarks.search_table import FILE, Measured, Table
from benchmarks.search_verdicts import judged, race_rows, verdict_rows
from gptailor.searching.space.genome import Genome

MARKS = (20, 40, 60, 80, 100, 200)
"""Numbers of evaluations after which the plans are compared."""
AIMS = ("SMAC3", "EvoPress")
"""Peers that set an aim: their best plan after all evaluations."""
SLOW = ("SMAC3", "SMAC3, slots", "HEBO", "HEBO, slots", "Optuna GP")
NEEDED = {
    "CatCMAwM": "it needs the package cmaes",
    "SMAC3": "it needs --smac PYTHON",
    "HEBO": "it needs --hebo PYTHON",
}
"""The requirements of searchers beyond the set-up."""
RACED = ("random", "surrogate")
RACES = 6
"""Searchers with raced trials, and searches of each; a Wilcoxon test is slow."""


@dataclass(frozen=True)
class Course:
    """The course of a search: its plan's value after each cost, and its seconds.

    `trials` are the plans scored on all samples, in order, including `found`.
    """

    cost: np.ndarray
    value: np.ndarray
    seconds: float
    trials: Genome
    found: Genome

    def at(self, evaluations: float) -> float:
        """Return the plan's value after a number of evaluations."""
        return float(self.value[np.searchsorted(self.cost, evaluations + 1e-9) - 1])

    def reaches(self, value: float) -> float:
        """Return the evaluations until the plan reached a value, or infinity."""
        found = np.flatnonzero(self.value <= value + 1e-9)
        return float(self.cost[found[0]]) if len(found) else np.inf


def searched(landscape: Landscape, searcher: Searcher, evaluations: int) -> Course:
    """Search until the evaluations are spent."""
    starts = landscape.starts
    seen, true = landscape.observed(starts), landscape.true(starts)
    best = int(np.argmin(seen))
    trials = [Genome(*genes) for genes in zip(*starts, strict=True)]
    held = (seen[best], true[best], trials[best])
    cost, course, seconds = [float(len(seen))], [held[1]], 0.0
    begun = time.perf_counter()
    searcher.tell(starts, seen, np.ones(len(seen)))
    seconds += time.perf_counter() - begun
    while cost[-1] < evaluations:
        begun = time.perf_counter()
        population, shares = searcher.ask()
        seconds += time.perf_counter() - begun
        if not len(shares):
            break
        values = np.concatenate(
            [
                landscape.observed(type(population)(*(gene[i : i + 1] for gene in population)), s)
                for i, s in enumerate(map(float, shares))
            ]
        )
        true = landscape.true(population)
        plans = [Genome(*genes) for genes in zip(*map(np.asarray, population), strict=True)]
        for plan, value, real, share in zip(plans, values, true, shares, strict=True):
            cost.append(cost[-1] + landscape.cost(float(share)))
            if share == 1 and cost[-1] <= evaluations + 1e-9:
                trials.append(plan)
                held = min(held, (value, real, plan), key=lambda one: one[0])
            course.append(held[1])
        begun = time.perf_counter()
        searcher.tell(population, values, shares)
        seconds += time.perf_counter() - begun
    return Course(np.array(cost), np.array(course), seconds, joined(trials), held[2])


def run(landscape: Landscape, factory: Factory, seed: int, evaluations: int) -> Course:
    """Run one search of one searcher."""
    searcher = factory(landscape.space, seed)
    if isinstance(searcher, Ours):
        searcher.measured(landscape.prior)
    try:
        return searched(landscape, searcher, evaluations)
    finally:
        if isinstance(searcher, Elsewhere):
            searcher.close()


Runs = Mapping[str, Sequence[Course]]


def scaled(landscapes: Sequence[Landscape], runs: Runs) -> dict[str, list[Course]]:
    """Return values as remaining shares of the gap, if the optimum is known."""
    found: dict[str, list[Course]] = {}
    for name, courses in runs.items():
        found[name] = []
        for landscape, course in zip(landscapes, courses, strict=False):
            low, first = landscape.optimum, course.value[0]
            value = course.value if low is None else (course.value - low) / (first - low)
            found[name].append(replace(course, value=value))
    return found


def rows(runs: Runs, evaluations: int) -> Iterator[str]:
    """Yield a line for each searcher: medians at the marks, and evaluations to the peers' best."""
    first = max(course.cost[0] for courses in runs.values() for course in courses)
    marks = [mark for mark in MARKS if first <= mark <= evaluations]
    heads = [f"after {mark}" for mark in marks]
    aims = [name for name in AIMS if name in runs]
    heads += [f"reaches {name}'s {evaluations}" for name in aims]
    yield f"| searcher | seeds | {' | '.join(heads)} | s |"
    yield f"|---|--:|{'--:|' * len(heads)}--:|"
    for name, courses in runs.items():
        cells = [spread([course.at(mark) for course in courses]) for mark in marks]
        for aim in aims:
            pairs = zip(courses, runs[aim], strict=False)
            when = statistics.median(one.reaches(other.at(evaluations)) for one, other in pairs)
            cells.append(f"{when:.0f}" if np.isfinite(when) else "never")
        seconds = statistics.median(course.seconds for course in courses)
        yield f"| {name} | {len(courses)} | {' | '.join(cells)} | {seconds:.1f} |"


def spread(values: Sequence[float]) -> str:
    """Return the median and the quartiles in words."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f} … {high:.3f})"


def compare(
    landscapes: Sequence[Landscape], taking: Mapping[str, Factory], given: Any
) -> dict[str, list[Course]]:
    """Run all searchers on each landscape, with one seed each."""
    runs: dict[str, list[Course]] = {}
    for name, factory in taking.items():
        many = given.slow_seeds if name in SLOW else given.seeds
        runs[name] = [
            run(landscape, factory, seed, given.evaluations)
            for seed, landscape in enumerate(landscapes[:many])
        ]
        print(f"  {name}: done", file=sys.stderr, flush=True)
    return runs


def timed(given: Any) -> None:
    """Print the time of building a space, of compiling, and of an ask with its tell."""
    from benchmarks.search_time import table

    for line in table(given.smac):
        print(line)


def main() -> None:
    """Measure, and print tables."""
    given = arguments().parse_args()
    if given.time:
        timed(given)
    if given.synthetic:
        synthetic(given, chosen(given))
    if given.table:
        tabled(given, chosen(given))


def chosen(given: Any) -> dict[str, Factory]:
    """Return the chosen searchers."""
    everyone = peers({"SMAC3": given.smac, "HEBO": given.hebo}, given.evaluations)
    for name, missing in NEEDED.items():
        if name not in everyone:
            print(f"{name} is skipped: {missing}", file=sys.stderr)
    if given.ablation:
        everyone = {"surrogate": everyone["surrogate"], **ablations()}
    unknown = set(given.peers) - set(everyone)
    if unknown:
        sys.exit(f"--peers: unknown {', '.join(sorted(unknown))}; known: {', '.join(everyone)}")
    return {name: everyone[name] for name in given.peers or everyone}


def synthetic(given: Any, taking: Mapping[str, Factory]) -> None:
    """Print a table for each kind of landscape and shape, and one for all."""
    total: dict[str, list[Course]] = {name: [] for name in taking}
    for kind, shape in product(given.kinds, given.shapes):
        landscapes = [Synthetic(kind, shape, seed) for seed in range(given.seeds)]
        runs = scaled(landscapes, compare(landscapes, taking, given))
        print(f"\n{landscapes[0].name}\n", *rows(runs, given.evaluations), sep="\n", flush=True)
        for name, courses in runs.items():
            total[name] += courses
    print("\nall\n", *rows(total, given.evaluations), sep="\n")
    if given.save:
        said = {
            name: [[course.cost.tolist(), course.value.tolist()] for course in courses]
            for name, courses in total.items()
        }
        Path(given.save).write_text(json.dumps(said), encoding="utf-8")


def tabled(given: Any, taking: Mapping[str, Factory]) -> None:
    """Print the tables of the measured plans: searchers, held-out losses, verdicts, races."""
    table = Table.read(given.table)
    landscapes = [Measured(table, seed) for seed in range(given.seeds)]
    runs: dict[str, list[Course]] = {}
    for name, courses in compare(landscapes, taking, given).items():
        pairs = zip(landscapes, courses, strict=False)
        runs[name] = [
            replace(course, value=np.maximum(course.value - of.optimum, 0)) for of, course in pairs
        ]
    print("\nnats above the optimum\n", *rows(runs, given.evaluations), sep="\n", flush=True)
    print("\n| searcher | held out: nats above the held-out optimum |", "|---|--:|", sep="\n")
    verdicts, races = [], {}
    for name, courses in runs.items():
        courses_of = list(zip(landscapes, courses, strict=False))
        held = [float(of.held_out(joined([course.found]))[0]) - of.least_held_out
                for of, course in courses_of]  # fmt: skip
        print(f"| {name} | {spread(held)} |")
        if name != "one-shot":
            verdicts += [judged(of, course.found) for of, course in courses_of]
        if name in RACED:
            races[name] = [(of.in_a_row(course.trials), len(of.starts.bits))
                           for of, course in courses_of[:RACES]]  # fmt: skip
    print("", *verdict_rows(verdicts), "", sep="\n", flush=True)
    print(*race_rows(races), sep="\n")


def arguments() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--synthetic", action="store_true", help="landscapes with known optima")
    add("--table", type=Path, nargs="?", const=FILE, metavar="FILE",
        help="measured plans of SmolLM2's family (benchmarks/search_table.npz)")  # fmt: skip
    add("--time", action="store_true", help="time of an ask and a tell")
    add("--ablation", action="store_true", help="the surrogate without its parts, not the peers")
    add("--seeds", type=int, default=10, help="landscapes of each kind, each with its seed (10)")
    add("--slow-seeds", type=int, default=3, help="seeds of slow peers (3)")
    add("--evaluations", type=int, default=200, help="evaluations of a search (200)")
    add("--kinds", nargs="+", default=KINDS, choices=KINDS, help="kinds of landscapes (all)")
    add("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="spaces (all)")
    add("--peers", nargs="+", default=[], help="searchers (all available)")
    add("--smac", metavar="PYTHON", help="a Python with SMAC3")
    add("--hebo", metavar="PYTHON", help="a Python with HEBO")
    add("--save", metavar="FILE", help="write the courses, as JSON")
    return parser


if __name__ == "__main__":
    main()
