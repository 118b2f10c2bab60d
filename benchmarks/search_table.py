"""A landscape of measured losses: 3,240 plans of SmolLM2's family, each on 48 samples.

A plan merges the demo's three fine-tunes by task arithmetic and drops three of ten layers. The
weights of the merge are real numbers: losses between measured weights are interpolated, sample by
sample. `benchmarks/search_table_measure.py` measures the table.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

import gptailor
from benchmarks.search_landscapes import joined
from gptailor.search.run.schedule import ToldStart
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space, space_of
from gptailor.search.starts.stages import Starts

LAYERS: Final = 30
FIRST, LAST, DROPPED = 18, 27, 3
"""The layers that may be dropped, and how many are."""
MODELS: Final = ("math", "chat", "code")
LEAST, MOST = 0.0, 0.6
"""The least and the greatest weight of a model."""
CUTS: Final = tuple(combinations(range(FIRST, LAST + 1), DROPPED))
FILE: Final = Path(__file__).with_name("search_table.npz")


def space_text(models: Sequence[str]) -> str:
    """Return the open plan of the table, over models that statements name."""
    numbers = [f"of_{name}" for name in MODELS]
    lines = ["tailor 1", *models]
    lines += [f"let {number} = {LEAST}..{MOST}" for number in numbers]
    weights = ", ".join(numbers)
    lines.append(f"whole from {', '.join(MODELS)} by task_arithmetic(weight=({weights}))")
    lines.append(f"drop any {DROPPED} of L{FIRST}..L{LAST}")
    return "\n".join([*lines, ""])


class Table(NamedTuple):
    """The losses of the plans.

    `losses` are nats a token, `[weight, weight, weight, cut, sample]`; the first cut is empty.
    Samples of the three domains take turns, and the first half is of the search's sources. `counts`
    are the predicted tokens of the samples. `weights` are the measured weights of each model, in
    order. `influence` is the block influence of all layers, by the name of a whole model.
    """

    losses: np.ndarray
    counts: np.ndarray
    weights: Sequence[Sequence[float]]
    influence: Mapping[str, Sequence[float]]

    @classmethod
    def read(cls, file: Path = FILE) -> "Table":
        """Read a table."""
        with np.load(file) as arrays:
            said = json.loads(str(arrays["said"]))
            return cls(arrays["losses"], arrays["counts"], said["weights"], said["influence"])

    def write(self, file: Path = FILE) -> None:
        """Write it, compressed."""
        losses = self.losses.astype(np.float32)
        said = np.array(json.dumps({"weights": self.weights, "influence": self.influence}))
        np.savez_compressed(file, losses=losses, counts=self.counts, said=said)

    def at(self, recipe: Sequence[float], cut: Sequence[int]) -> np.ndarray:
        """Return the losses of a measured plan, `[sample]`."""
        of = [list(known).index(one) for known, one in zip(self.weights, recipe, strict=True)]
        row: np.ndarray = self.losses[*of, 1 + CUTS.index(tuple(cut))]
        return row


class Measured:
    """The landscape of a table: a draw of the samples' order, and of the source that judges.

    With an odd seed the other source of each domain is the search's.
    """

    name = "table"

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        half = len(table.counts) // 2
        domains = 3
        chance = np.random.default_rng([seed, half])
        turns = [chance.permutation(half // domains) * domains + i for i in range(domains)]
        order = np.stack(turns, axis=1).ravel()
        self.searched, self.held = order, order + half
        if seed % 2:
            self.searched, self.held = self.held, self.searched

    @cached_property
    def space(self) -> Space:
        """The space of the table."""
        names = ("base", *MODELS)
        text = space_text([f'model {name} = "./{name}"' for name in names])
        return space_of(gptailor.loads(text), LAYERS)

    @cached_property
    def _genes(self) -> tuple[np.ndarray, np.ndarray]:
        """The genes of the dropped layers and of the models' weights, in order."""
        drops = [[bit.name for bit in self.space.bits].index(f"drop L{layer}")
                 for layer in range(FIRST, LAST + 1)]  # fmt: skip
        names = [real.name for real in self.space.reals]
        weights = [next(i for i, name in enumerate(names) if f"of_{model}" in name)
                   for model in MODELS]  # fmt: skip
        return np.array(drops), np.array(weights)

    def each(self, population: Genome) -> np.ndarray:
        """Return the losses of genomes on all samples of both sources, `[n, sample]`."""
        drops, weights = self._genes
        dropped = np.asarray(population.bits)[:, drops]
        cuts = [1 + CUTS.index(tuple(FIRST + np.flatnonzero(row))) for row in dropped]
        asked = LEAST + (MOST - LEAST) * np.asarray(population.reals, np.float64)[:, weights]
        low, share = np.zeros(asked.shape, int), np.zeros(asked.shape)
        for model, known in enumerate(self.table.weights):
            places = np.interp(asked[:, model], known, range(len(known)))
            low[:, model] = np.clip(np.floor(places), 0, len(known) - 2)
            share[:, model] = places - low[:, model]
        found = np.zeros((len(cuts), self.table.losses.shape[-1]))
        for corner in product((0, 1), repeat=len(MODELS)):
            factor = np.where(corner, share, 1 - share).prod(axis=1)
            found += factor[:, None] * self.table.losses[*(low + corner).T, cuts]
        return found

    def count(self, share: float) -> int:
        """Return the number of samples of a share."""
        return max(1, round(share * len(self.searched)))

    def cost(self, share: float) -> float:
        """Return the cost of a trial, in evaluations on all samples."""
        return self.count(share) / len(self.searched)

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the mean losses on the first samples."""
        found: np.ndarray = self.each(population)[:, self.searched[: self.count(share)]].mean(1)
        return found

    def true(self, population: Genome) -> np.ndarray:
        """Return the mean losses on all samples of the search."""
        return self.observed(population)

    def held_out(self, population: Genome) -> np.ndarray:
        """Return the mean losses on the held-out samples."""
        found: np.ndarray = self.each(population)[:, self.held].mean(1)
        return found

    @property
    def optimum(self) -> float:
        """Return the least loss; interpolated losses are never below it."""
        return float(self.table.losses[..., 1:, self.searched].mean(-1).min())

    @property
    def least_held_out(self) -> float:
        """Return the least held-out loss."""
        return float(self.table.losses[..., 1:, self.held].mean(-1).min())

    def in_a_row(self, population: Genome) -> np.ndarray:
        """Return the losses on the samples of both sources, in turn, `[n, sample]`."""
        order = np.stack([self.searched, self.held], axis=1).ravel()
        return self.each(population)[:, order]

    @property
    def prior(self) -> np.ndarray:
        """Return the block influence of the base's layers."""
        return np.array(self.table.influence["base"])

    @cached_property
    def starts(self) -> Genome:
        """The starting plans of a search that scores all of them on all samples."""
        starts = Starts(self.space, self.table.influence)
        told: list[ToldStart] = []
        while stage := starts.next(told):
            for one in stage:
                (value,) = self.observed(Genome(*(genes[None] for genes in one.genome)))
                told.append(ToldStart(one.origin, one.genome, 1.0, (float(value),)))
        return joined([one.genome for one in told])
