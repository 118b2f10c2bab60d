"""A landscape of measured losses: plans of SmolLM2's family, sample by sample.

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
from gptailor.searching.run.schedule import next_stage
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.starts.stages import Starts

LAYERS: Final = 30
FIRST, LAST, DROPPED = 18, 27, 3
"""The range of layers to choose from, and the number of dropped layers."""
MODELS: Final = ("math", "chat", "code")
CUTS: Final = tuple(combinations(range(FIRST, LAST + 1), DROPPED))
FILE: Final = Path(__file__).with_name("search_table.npz")


def space_text(models: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """Return the open plan of weights, over models that statements name.

    A model with one weight has a fixed number.
    """
    lines = ["tailor 1", *models]
    numbers = []
    for name, known in zip(MODELS, weights, strict=True):
        numbers.append(f"of_{name}" if len(known) > 1 else f"{known[0]}")
        lines += [f"let of_{name} = {known[0]}..{known[-1]}"] if len(known) > 1 else []
    recipe = f"task_arithmetic(weight=({', '.join(numbers)}))"
    lines.append(f"whole from {', '.join(MODELS)} by {recipe}")
    lines.append(f"drop any {DROPPED} of L{FIRST}..L{LAST}")
    return "\n".join([*lines, ""])


class Table(NamedTuple):
    """The losses of the plans.

    `losses` are nats a token, `[weight, weight, weight, cut, sample]`; the first cut is empty.
    Samples of the three domains alternate. The first half has the search's sources. `counts`
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
        """Write the table, compressed."""
        losses = self.losses.astype(np.float32)
        said = np.array(json.dumps({"weights": self.weights, "influence": self.influence}))
        np.savez_compressed(file, losses=losses, counts=self.counts, said=said)

    def at(self, recipe: Sequence[float], cut: Sequence[int]) -> np.ndarray:
        """Return the losses of a measured plan, `[sample]`."""
        of = [list(known).index(one) for known, one in zip(self.weights, recipe, strict=True)]
        row: np.ndarray = self.losses[*of, 1 + CUTS.index(tuple(cut))]
        return row


class Measured:
    """The landscape of a table, with a random order of samples and a held-out source.

    An odd seed exchanges the two sources of each domain.
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
        """Return the space of the table."""
        names = ("base", *MODELS)
        text = space_text([f'model {name} = "./{name}"' for name in names], self.table.weights)
        return space_of(gptailor.loads(text), LAYERS)

    @cached_property
    def _drops(self) -> np.ndarray:
        """Return the genes of the droppable layers, in order."""
        names = [bit.name for bit in self.space.bits]
        return np.array([names.index(f"drop L{layer}") for layer in range(FIRST, LAST + 1)])

    def _weights(self, population: Genome) -> np.ndarray:
        """Return the weights of each model, as places among its measured ones, `[n, model]`."""
        names = [real.name.split()[-1] for real in self.space.reals]
        reals = np.asarray(population.reals, np.float64)
        found = np.zeros((len(reals), len(MODELS)))
        for model, known in enumerate(self.table.weights):
            if len(known) > 1:
                share = reals[:, names.index(f"of_{MODELS[model]}")]
                weight = known[0] + (known[-1] - known[0]) * share
                found[:, model] = np.interp(weight, known, range(len(known)))
        return found

    def each(self, population: Genome) -> np.ndarray:
        """Return the losses of genomes on all samples of both sources, `[n, sample]`."""
        dropped = np.asarray(population.bits)[:, self._drops]
        cuts = [1 + CUTS.index(tuple(FIRST + np.flatnonzero(row))) for row in dropped]
        places = self._weights(population)
        most = np.array([len(known) - 1 for known in self.table.weights])
        low = np.minimum(np.floor(places).astype(int), np.maximum(most - 1, 0))
        share = places - low
        found = np.zeros((len(cuts), self.table.losses.shape[-1]))
        for corner in product((0, 1), repeat=len(MODELS)):
            factor = np.where(corner, share, 1 - share).prod(axis=1)
            at = np.minimum(low + corner, most)
            found += factor[:, None] * self.table.losses[*at.T, cuts]
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
        """Return the starting plans of a search that scores each on all samples."""
        stages = Starts(self.space, self.table.influence).stages()
        genomes: list[Genome] = []
        stage = next_stage(stages, None)
        while stage:
            genomes += [one.genome for one in stage]
            values = self.observed(joined([one.genome for one in stage]))
            results = [
                one._replace(share=1.0, losses=(float(value),))
                for one, value in zip(stage, values, strict=True)
            ]
            stage = next_stage(stages, results)
        return joined(genomes)
