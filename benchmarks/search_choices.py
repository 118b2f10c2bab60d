"""Compare rules that choose a search's plan by few samples, on the table of measured plans.

    python benchmarks/search_choices.py --samples 6 --evaluations 40
    python benchmarks/search_choices.py --samples 6 --drawn 60 --seeds 200

Each search of the surrogate reads this many samples of one source. A rule chooses one of the plans
that the search scored. The plan is judged on the other samples of that source, and on the other
source. Figures are mean nats a token above the plan with the lowest mean, with standard errors of
the differences. With `--drawn` the plans are drawn from the best of the table, and all count as
starting plans.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.search import run
from benchmarks.search_peers import peers
from benchmarks.search_table import Measured, Table

DOMAINS = 3
LEAST = "the lowest mean"
BEST = 150
"""The number of measured plans, best first, to draw from."""
MOST = 12
"""The number of best plans; their median, sample by sample, is a reference of pairs."""


class Few(Measured):
    """The landscape of a table for a search of few samples, as many of each domain.

    `rest` are the other samples of the search's source.
    """

    def __init__(self, table: Table, seed: int, samples: int) -> None:
        super().__init__(table, seed)
        chance = np.random.default_rng([seed, samples, 7])
        domains = [self.searched[self.searched % DOMAINS == domain] for domain in range(DOMAINS)]
        each = samples // DOMAINS
        chosen = [chance.choice(domain, each, replace=False) for domain in domains]
        self.rest = np.setdiff1d(self.searched, np.concatenate(chosen))
        self.searched = chance.permutation(np.concatenate(chosen))


def choices(land: Few, each: np.ndarray, starts: int, seed: int) -> Mapping[str, int]:
    """Return the number of the plan that each rule chooses, of losses `[plan, sample]`."""
    seen = each[:, land.searched]
    means, best = seen.mean(1), np.argsort(seen.mean(1))

    def error(other: np.ndarray) -> np.ndarray:
        """Return the error of each plan's mean difference from a plan."""
        errors: np.ndarray = (seen - other).std(1, ddof=1) / seen.shape[1] ** 0.5
        return errors

    start = int(means[:starts].argmin())
    found = {LEAST: int(best[0]), "the best starting plan": start}
    for errors in (0.5, 1, 2):
        words = f"{errors:g} error{'s' * (errors != 1)} of pairs"
        middle = np.median(seen[best[:MOST]], 0)
        for name, other in (
            ("the best starting plan", seen[start]),
            ("the mean starting plan", seen[:starts].mean(0)),
            (f"the median of the best {MOST}", middle),
        ):
            found[f"mean and {words} with {name}"] = int((means + errors * error(other)).argmin())
    chance = np.random.default_rng(seed)
    held = chance.choice(land.rest, min(len(land.rest), seen.shape[1]), replace=False)
    both = np.concatenate([land.searched, held])
    for count in (3, 5):
        place = int(each[best[:count]][:, both].mean(1).argmin())
        found[f"of the best {count}, the lowest mean with held-out samples"] = int(best[place])
    return found


def drawn(table: Table, plans: int, seed: int) -> np.ndarray:
    """Return the losses of plans that are drawn from the best ones, `[plan, sample]`."""
    every = table.losses[..., 1:, :].reshape(-1, table.losses.shape[-1]).astype(float)
    best = np.argsort(every.mean(1))[:BEST]
    return every[np.random.default_rng([seed, plans]).choice(best, plans, replace=False)]


def rows(samples: int, evaluations: int, plans: int, seeds: int) -> Iterator[str]:
    """Yield a line for each rule."""
    table, losses = Table.read(), defaultdict[str, list[tuple[float, float]]](list)
    surrogate = peers({}, evaluations)["surrogate"]
    for seed in range(seeds):
        land = Few(table, seed, samples)
        if plans:
            each, starts = drawn(table, plans, seed), plans
        else:
            each = land.each(run(land, surrogate, seed, evaluations).trials)
            starts = len(land.starts.bits)
        for rule, plan in choices(land, each, starts, seed).items():
            losses[rule].append((each[plan, land.rest].mean(), each[plan, land.held].mean()))
    yield "| the chosen plan | same source | other source |"
    yield "|---|--:|--:|"
    for rule, values in losses.items():
        behind = np.subtract(values, losses[LEAST])
        errors = behind.std(0, ddof=1) / seeds**0.5
        cells = (f"{a:+.3f} ± {b:.3f}" for a, b in zip(behind.mean(0), errors, strict=True))
        yield f"| {rule} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6, help="samples of a search (6)")
    parser.add_argument("--evaluations", type=int, default=40, help="of a search (40)")
    parser.add_argument("--drawn", type=int, default=0, help="drawn plans, without a search")
    parser.add_argument("--seeds", type=int, default=24, help="searches (24)")
    given = parser.parse_args()
    print(*rows(given.samples, given.evaluations, given.drawn, given.seeds), sep="\n")


if __name__ == "__main__":
    main()
