"""Measure how a search with an open size improves the plans of each size.

    python benchmarks/search_sizes.py               # four seeds of three kinds of landscapes

A space drops 4 to 10 of 30 layers and merges three models. The objectives are the loss and the
number of layers. All searchers begin with the same plans: nested cuts of each size by block
influence, and models and merges of the middle size. The figures are the shares of the gap between
the best starting plan and the optimum that are left, the mean over the seven sizes, medians of the
landscapes. `surrogate, one front` has no sizes of its own for each plan of an ask.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import search_landscapes
from benchmarks.search_landscapes import Synthetic, joined
from gptailor.searching.run.asking import by_spread, draw_weights
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import folded, key_of
from gptailor.searching.space.space import Space
from gptailor.searching.starts.compositions import composed, compositions
from gptailor.searching.starts.cuts import nested_cuts
from gptailor.searching.strategies import strategy_of, surrogate

SIZES: Final = range(4, 11)
KINDS: Final = ("pairs", "separable", "noisy")
MARKS: Final = (40, 60, 90, 120)
SEARCHERS: Final = ("surrogate", "surrogate, one front", "random")


def sized(kind: str, seed: int, dropped: int) -> Synthetic:
    """Return the landscape of plans that drop this many layers."""
    shape = f"30/3/{dropped}"
    search_landscapes.SHAPES.setdefault(shape, (30, 3, dropped))
    return Synthetic(kind, shape, seed)


def starts(landscape: Synthetic, space: Space) -> Genome:
    """Return nested cuts of the base, and models and merges with the middle cut."""
    base, *others = compositions(space)
    cuts = nested_cuts(space, -landscape.prior)
    middle = cuts[len(cuts) // 2]
    found = [composed(space, base, cut) for cut in cuts]
    return joined([*found, *(composed(space, of, middle) for of in others[:5])])


def left(name: str, kind: str, seed: int, evaluations: int) -> list[float]:
    """Return the shares of the gaps that are left at each mark, the mean over the sizes."""
    landscape = sized(kind, seed, SIZES[-1])
    space = search_landscapes.space(30, 3, f"{SIZES[0]}..{SIZES[-1]}")
    landscape.__dict__["space"] = space  # with all sizes
    strategy, key = strategy_of(name.partition(",")[0]), key_of(seed)
    state = strategy.init(space.table, 256, key, 2, landscape.prior)
    best: dict[int, float] = {}
    told = np.zeros((0, 2), np.float32)
    first: dict[int, float] = {}
    spent: list[float] = []
    population = starts(landscape, space)
    optima = {size: sized(kind, seed, size).optimum for size in SIZES}
    while len(told) < evaluations:
        losses = landscape.observed(population)
        sizes = np.asarray(population.bits)[:, landscape.places.drop].sum(axis=1)
        for loss, size in zip(losses, sizes, strict=True):
            best[int(size)] = min(float(loss), best.get(int(size), np.inf))
        first = first or dict(best)
        values = np.stack([losses, -sizes], axis=1).astype(np.float32)
        told = np.concatenate([told, values])
        gaps = [(best[k] - optima[k]) / (first[k] - optima[k]) for k in SIZES]
        spent += [float(np.mean(gaps))] * len(values)
        ones = np.ones(len(values), np.float32)
        state = strategy.tell(space.table, state, population, values, ones)
        weights = by_spread(draw_weights(folded(key, len(told)), 2), told)
        population, _, state = strategy.ask(space.table, state, folded(key, -len(told)), weights)
    return [spent[mark - 1] for mark in MARKS if mark <= evaluations]


def rows(seeds: int, evaluations: int) -> Iterator[str]:
    """Yield a line for each searcher."""
    marks = [mark for mark in MARKS if mark <= evaluations]
    yield f"| searcher | {' | '.join(map(str, marks))} |"
    yield f"|---|{'--:|' * len(marks)}"
    apart = surrogate._wanted_sizes
    for name in SEARCHERS:
        surrogate._wanted_sizes = apart if name != SEARCHERS[1] else lambda *_: None
        found = [left(name, kind, seed, evaluations) for kind in KINDS for seed in range(seeds)]
        cells = [f"{median(column):.2f}" for column in zip(*found, strict=True)]
        yield f"| `{name}` | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4, help="landscapes of each kind (4)")
    parser.add_argument("--evaluations", type=int, default=120, help="of each search (120)")
    given: Mapping[str, int] = vars(parser.parse_args())
    for line in rows(given["seeds"], given["evaluations"]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
