"""Synthetic landscapes with a known optimum, for measuring searches.

Each resembles real models: the first and last layers are expensive to drop, the models' strengths
change slowly with depth, and the loss grows faster than the cut. A seed determines a landscape.
Dynamic programming over positions finds its optimum.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol
from zlib import crc32

import numpy as np

import gptailor
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of

MODELS = ("math", "code", "chat")
SHAPES = {"40/3/10": (40, 3, 10), "30/3/7": (30, 3, 7)}
KINDS = ("separable", "pairs", "deceptive", "noisy")
UNCUT = 2.7
"""Nats of the uncut base."""
GRID = 11
"""Scales of a merge in the search for the optimum."""
STRIDE = 3
"""Positions between the windows that are starting plans."""
ASTRAY = 0.01
"""Deviation in nats of half of the samples, for each dropped layer."""
TRAP = 3
"""Layers of a trap in a deceptive landscape: only dropping all of them is cheap."""


class Landscape(Protocol):
    """A landscape: the values that a search receives, and the true values."""

    @property
    def name(self) -> str:
        """Return the title of its table."""

    @property
    def space(self) -> Space:
        """Return the plans' choices."""

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the values of trials, `[n]`, to be minimised; they may have noise."""

    def true(self, population: Genome) -> np.ndarray:
        """Return the true values, `[n]`."""

    def cost(self, share: float) -> float:
        """Return the cost of a trial on a share of the samples, in evaluations."""

    @property
    def starts(self) -> Genome:
        """Return the starting plans."""

    @property
    def prior(self) -> np.ndarray:
        """Return the block influence of each layer."""

    @property
    def optimum(self) -> float | None:
        """Return the lowest true value of a plan, or None if it is unknown."""


def space(layers: int, models: int, drops: int | str) -> Space:
    """Return the paper's pruning space of a size."""
    names = MODELS[:models]
    lines = [f'model {name} = "./{name}"' for name in ("base", *names)]
    recipe = f"from any of {', '.join(names)} by task_arithmetic(0.0..1.0)"
    lines += [f"drop any {drops} of L0..L{layers - 1}", f"L0..L{layers - 1} {recipe}"]
    return space_of(gptailor.loads("\n".join(["tailor 1", *lines, ""])), layers)


@dataclass(frozen=True)
class Places:
    """Places of the genes of a pruning space, by position and model."""

    drop: np.ndarray  # [layers]
    has: np.ndarray  # [layers, models]
    scale: np.ndarray  # [layers]

    @classmethod
    def of(cls, space: Space) -> "Places":
        """Return the places, by the genes' names."""
        layers = space.layers
        models = len({bit.subject for bit in space.bits if bit.subject.role == "member"})
        found = cls(np.zeros(layers, int), np.zeros((layers, models), int), np.zeros(layers, int))
        for number, gene in enumerate(space.bits):
            layer = int(re.findall(r"L(\d+)", gene.name)[0])
            if gene.name.startswith("drop"):
                found.drop[layer] = number
            else:
                found.has[layer, MODELS.index(gene.name.split()[-1])] = number
        for number, real in enumerate(space.reals):
            found.scale[int(re.findall(r"L(\d+)", real.name)[0])] = number
        return found


@dataclass(frozen=True)
class Synthetic:
    """A landscape over a pruning space."""

    kind: str
    shape: str
    seed: int

    @property
    def name(self) -> str:
        """Return the kind and the shape in words."""
        return f"{self.kind} {self.shape}"

    @cached_property
    def space(self) -> Space:
        """Return the paper's space."""
        return space(*SHAPES[self.shape])

    @cached_property
    def places(self) -> Places:
        """Return the places of its genes."""
        return Places.of(self.space)

    @property
    def models(self) -> int:
        """Return the number of fine-tunes."""
        return SHAPES[self.shape][1]

    @cached_property
    def parts(self) -> Mapping[str, np.ndarray]:
        """Return the landscape's random numbers."""
        layers, models, _ = SHAPES[self.shape]
        chance = np.random.default_rng([self.seed, layers, KINDS.index(self.kind)])
        depth = np.linspace(-1, 1, layers)
        ends = 0.12 + 0.9 * np.abs(depth) ** 4
        rough = np.exp(0.4 * smooth(chance, layers, 2.0) + 0.35 * chance.normal(size=layers))
        gain = 0.01 * chance.normal(size=models) + 0.025 * np.stack(
            [smooth(chance, layers, 3.0) for _ in range(models)], axis=1
        )
        gain += 0.015 * chance.normal(size=(layers, models))
        blocks = chance.permutation(layers - 2 * TRAP)[:4]
        return {
            "drop": ends * rough,
            "gain": 0.02 + gain,
            "bend": np.full(layers, 0.05),
            "clash": np.full(layers, 0.03),
            "joint": 0.08 * (chance.normal(size=layers - 1) - 0.6),
            "seam": 0.02 * chance.gamma(1.0, size=layers - 1),
            "said": np.exp(0.35 * chance.normal(size=layers)),
            "traps": np.sort(blocks),
            "astray": chance.normal(size=(layers, 1 + models)),
        }

    # ------------------------------------------------------------------------------------- values

    def unpacked(self, population: Genome) -> tuple[np.ndarray, np.ndarray]:
        """Return the dropped layers, `[n, layers]`, and models' weights, `[n, layers, models]`."""
        bits, reals = np.asarray(population.bits), np.asarray(population.reals)
        has = bits[:, self.places.has]
        scale = np.where(has.sum(-1) > 1, reals[:, self.places.scale], 1.0)
        return bits[:, self.places.drop], has * scale[..., None]

    def true(self, population: Genome) -> np.ndarray:
        """Return nats: the base's, and more for the loss, which counts more than linearly."""
        dropped, counts = self.unpacked(population)
        return nats(self.loss(dropped, counts))

    def loss(self, dropped: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the sum of the losses of positions and of neighbouring pairs."""
        parts = self.parts
        alone = np.where(dropped, parts["drop"], self.made(counts)).sum(-1)
        if self.kind in ("pairs", "noisy"):
            both = dropped[:, 1:] & dropped[:, :-1]
            neither = ~dropped[:, 1:] & ~dropped[:, :-1]
            gap = ((counts[:, 1:] - counts[:, :-1]) ** 2).sum(-1)
            alone += np.where(both, parts["joint"], 0).sum(-1)
            alone += np.where(neither, parts["seam"] * gap, 0).sum(-1)
        if self.kind == "deceptive":
            alone += sum(self.trap(dropped[:, members]) for members in self.traps)
        return alone

    def made(self, counts: np.ndarray) -> np.ndarray:
        """Return a kept layer's loss by its composition; more models bring lower gains."""
        parts = self.parts
        total, square = counts.sum(-1), (counts**2).sum(-1)
        gain = (counts * parts["gain"]).sum(-1)
        return parts["bend"] * square / 2 + parts["clash"] * (total**2 - square) / 2 - gain

    @cached_property
    def traps(self) -> list[np.ndarray]:
        """Return the positions of each trap, which aren't neighbours."""
        taken: set[int] = set()
        found = []
        for first in self.parts["traps"]:
            members = np.array([first, first + 2, first + 4])
            if not taken & set(members.tolist()):
                found.append(members)
                taken |= set(members.tolist())
        return found

    def trap(self, dropped: np.ndarray) -> np.ndarray:
        """Return a trap's loss: negative if all its layers are dropped, else positive."""
        many = dropped.sum(-1)
        return np.where(many == TRAP, -0.35, 0.08 * many)

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the values on a share of the samples.

        They deviate from the true values, similarly for similar plans. A noisy landscape adds noise
        that is fixed for a plan.
        """
        dropped, counts = self.unpacked(population)
        astray = dropped @ self.parts["astray"][:, 0] + 0.3 * (
            counts * self.parts["astray"][:, 1:]
        ).sum((-1, -2))
        found = self.true(population) + ASTRAY * np.sqrt(1 / share - 1) * astray
        if self.kind != "noisy":
            return found
        rows = np.concatenate([dropped, np.round(counts, 3).reshape(len(counts), -1)], axis=1)
        marks = [crc32(row.tobytes()) for row in rows]
        noise = [np.random.default_rng([self.seed, mark]).normal() for mark in marks]
        return found + 0.015 / np.sqrt(share) * np.array(noise)

    def cost(self, share: float) -> float:
        """Return the share."""
        return share

    # ------------------------------------------------------------------------------------- starts

    @property
    def prior(self) -> np.ndarray:
        """Return approximate losses of dropped layers."""
        found: np.ndarray = self.parts["drop"] * self.parts["said"]
        return found

    @cached_property
    def starts(self) -> Genome:
        """Return cuts by block influence on each composition, then windows on the best of these."""
        layers, _, drops = SHAPES[self.shape]
        order = np.argsort(self.prior)
        influence = np.isin(np.arange(layers), order[:drops])
        uniform = np.full(self.models, 1 / self.models)
        mixes = [np.zeros(self.models), *np.eye(self.models), uniform]
        first = [self.packed(influence, np.tile(mix, (layers, 1))) for mix in mixes]
        values = self.observed(joined(first))
        best = mixes[int(np.argmin(values))]
        windows = [
            (np.arange(layers) >= at) & (np.arange(layers) < at + drops)
            for at in range(1, layers - drops, STRIDE)
        ]
        return joined([*first, *(self.packed(one, np.tile(best, (layers, 1))) for one in windows)])

    def packed(self, dropped: np.ndarray, counts: np.ndarray) -> Genome:
        """Return one genome, with inactive genes at their defaults."""
        defaults = self.space.table.defaults
        bits, reals = np.array(defaults.bits), np.array(defaults.reals)
        bits[self.places.drop] = dropped
        for layer in np.flatnonzero(~dropped):
            chosen = counts[layer] > 0
            bits[self.places.has[layer]] = chosen
            if chosen.sum() > 1:
                reals[self.places.scale[layer]] = counts[layer].max()
        return Genome(bits, np.array(defaults.picks), reals.astype(np.float32))

    # ------------------------------------------------------------------------------------ optimum

    @cached_property
    def optimum(self) -> float:
        """Return the lowest value over all sets of whole traps and paths through positions."""
        if self.kind != "deceptive":
            return float(nats(self.path(self.parts["drop"], ())))
        ways = product((False, True), repeat=len(self.traps))
        return float(nats(min(self.trapped(way) for way in ways)))

    def trapped(self, way: tuple[bool, ...]) -> float:
        """Return the lowest loss with these traps dropped whole, and others in part or not."""
        drop = self.parts["drop"].copy()
        forced: list[int] = []
        bonus = 0.0
        for whole, members in zip(way, self.traps, strict=True):
            if whole:
                forced += members.tolist()
                bonus -= 0.35
            else:
                drop[members] += 0.08
        if len(forced) > SHAPES[self.shape][2]:
            return np.inf
        return self.path(drop, tuple(forced)) + bonus

    def path(self, drop: np.ndarray, forced: tuple[int, ...]) -> float:
        """Return the lowest loss over drops and compositions, position by position."""
        layers, _, drops = SHAPES[self.shape]
        states = compositions(self.models)
        made = np.stack([self.made(np.tile(one, (layers, 1))) for one in states], axis=1)
        parts = self.parts
        pairs = self.kind in ("pairs", "noisy")
        gap = ((states[:, None] - states[None, :]) ** 2).sum(-1)
        table = np.full((drops + 1, len(states) + 1), np.inf)  # the last state: dropped
        table[0, 0] = 0.0
        for layer in range(layers):
            joint = parts["joint"][layer - 1] if pairs and layer else 0.0
            seam = parts["seam"][layer - 1] * gap if pairs and layer else 0 * gap
            kept, gone = table[:, :-1], table[:, -1:]
            come = np.minimum((kept[:, :, None] + seam[None]).min(1), gone)
            fresh = np.full_like(table, np.inf)
            fresh[1:, -1] = drop[layer] + np.minimum(kept.min(1), gone[:, 0] + joint)[:-1]
            if layer not in forced:
                fresh[:, :-1] = come + made[layer]
            table = fresh
        return float(table[drops].min())


def compositions(models: int) -> np.ndarray:
    """Return the possible compositions of a layer, `[states, models]`."""
    found = []
    for chosen in product((0.0, 1.0), repeat=models):
        several = sum(chosen) > 1
        scales = np.linspace(0, 1, GRID) if several else (1.0,)
        found += [np.array(chosen) * scale for scale in scales]
    return np.array(found)


def smooth(chance: np.random.Generator, layers: int, width: float) -> np.ndarray:
    """Return normal numbers that change slowly."""
    at = np.arange(layers)
    kernel = np.exp(-0.5 * ((at[:, None] - at[None, :]) / width) ** 2)
    kernel /= np.linalg.norm(kernel, axis=1, keepdims=True)
    return kernel @ chance.normal(size=layers)


def nats(loss: np.ndarray | float) -> np.ndarray:
    """Return a model's nats by its loss."""
    return np.asarray(UNCUT + 0.5 * np.expm1(np.minimum(loss, 4.0)))


def joined(genomes: list[Genome]) -> Genome:
    """Return one population of several."""
    return Genome(*map(np.stack, zip(*genomes, strict=True)))
