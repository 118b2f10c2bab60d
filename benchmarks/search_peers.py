"""Searchers behind one interface: gptailor's strategies, and the ways that others search.

Each is told the same starting plans and then asked for plans; what they say is in genomes of the
same space. Of a set of an exact size, what a peer can't say is repaired by chance.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.search_evosax import evosax_peers
from benchmarks.search_landscapes import Places, joined
from gptailor.plan.registry import STRATEGIES
from gptailor.search.space.genome import Genome
from gptailor.search.space.hash_random import folded, key_of
from gptailor.search.space.space import Space
from gptailor.search.strategies import moves, strategy_of
from gptailor.search.strategies.surrogate import Surrogate

CAPACITY = 256
"""Room for told trials of gptailor's own strategies."""


class Searcher(Protocol):
    """Asked for plans, told what they are worth."""

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Genomes, and the share of the samples that each is to be tried on."""

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """What was asked for, or a starting plan."""


class Ours:
    """A strategy of gptailor."""

    def __init__(self, strategy: Any, space: Space, seed: int, capacity: int = CAPACITY) -> None:
        self.strategy, self.table = strategy, space.table
        self.key, self.capacity = key_of(seed), capacity
        self.asks = 0
        self.measured(None)

    def measured(self, prior: np.ndarray | None) -> None:
        """What is known of the layers before anything is told: block influence."""
        self.state = self.strategy.init(self.table, self.capacity, self.key, 1, prior)

    def ask(self) -> tuple[Genome, np.ndarray]:
        """By the number of the ask."""
        key = folded(self.key, self.asks)
        self.asks += 1
        population, shares, self.state = self.strategy.ask(self.table, self.state, key, np.ones(1))
        return population, shares

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """All at once."""
        told = np.asarray(values, np.float32)[:, None], np.asarray(shares, np.float32)
        self.state = self.strategy.tell(self.table, self.state, population, *told)


class Unmeasured(Ours):
    """A strategy that is not told block influence."""

    def measured(self, prior: np.ndarray | None) -> None:
        """Nothing is known."""
        super().measured(None)


class Blind(Ours):
    """A strategy that is not told the starting plans."""

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Only what it asked for."""
        if self.asks:
            super().tell(population, values, shares)


class Still(Ours):
    """A strategy whose dropped windows don't shift."""

    def ask(self) -> tuple[Genome, np.ndarray]:
        """With that move left out."""
        kept, moves.SHIFT = moves.SHIFT, 0.0
        try:
            return super().ask()
        finally:
            moves.SHIFT = kept


class EvoPress:
    """The scheme of EvoPress (arXiv 2410.14649), written from its paper: (1 + λ), staged.

    Each offspring makes min(a, b) mutations, a and b being 1 to 3: a dropped and a kept layer
    change places, or a layer's composition changes (which the paper doesn't have). The offspring
    are tried on few samples, the best of them on more; of the last ones and the parent the best
    goes on.
    """

    def __init__(
        self, space: Space, seed: int, offspring: int, stages: tuple[tuple[int, float], ...]
    ) -> None:
        self.places = Places.of(space)
        self.chance = np.random.default_rng(seed)
        self.offspring, self.stages = offspring, stages
        self.parent: Genome | None = None
        self.value = np.inf
        self.stage = 0
        self.survivors: Genome | None = None

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Offspring, or those of them that go on."""
        if self.survivors is None:
            self.stage = 0
            self.survivors = joined([self.mutant() for _ in range(self.offspring)])
        share = self.stages[self.stage][1]
        return self.survivors, np.full(len(self.survivors.bits), share)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Starting plans, then the stage that was asked for."""
        if self.survivors is None or self.stage == len(self.stages) - 1:
            for row, (value, share) in enumerate(zip(values, shares, strict=True)):
                if value <= self.value and share == 1:
                    self.value, self.parent = value, one_of(population, row)
            self.survivors = None
            return
        self.stage += 1
        best = np.argsort(values, kind="stable")[: self.stages[self.stage][0]]
        self.survivors = Genome(*(np.asarray(gene)[best] for gene in population))

    def mutant(self) -> Genome:
        """One offspring of the parent."""
        chance, at = self.chance, self.places
        assert self.parent is not None, "starting plans are told first"
        bits, reals = np.array(self.parent.bits), np.array(self.parent.reals)
        for _ in range(min(chance.integers(1, 4), chance.integers(1, 4))):
            gone = bits[at.drop]
            layer = int(chance.choice(np.flatnonzero(~gone)))
            draw = chance.random()
            if draw < 0.5:
                other = int(chance.choice(np.flatnonzero(gone)))
                bits[at.drop[[layer, other]]] = True, False
                bits[at.has[other]], bits[at.has[layer]] = bits[at.has[layer]], False
                reals[at.scale[[layer, other]]] = 0.5, reals[at.scale[layer]]
            elif draw < 0.85:
                bits[at.has[layer, chance.integers(at.has.shape[1])]] ^= True
            else:
                reals[at.scale[layer]] = chance.random()
        return Genome(bits, np.array(self.parent.picks), reals)


class Optuna:
    """A sampler of Optuna. What it suggests is repaired for the trial; it learns from its own."""

    def __init__(self, space: Space, seed: int, sampler: str) -> None:
        import optuna  # a peer that other runs don't need

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers: dict[str, Callable[[], Any]] = {
            "TPE": lambda: optuna.samplers.TPESampler(seed=seed),
            "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=16),
        }
        self.space, self.chance = space, np.random.default_rng(seed)
        self.study = optuna.create_study(sampler=samplers[sampler]())
        table, several = space.table, optuna.distributions.CategoricalDistribution
        real = optuna.distributions.FloatDistribution(0.0, 1.0)
        self.kinds: dict[str, Any] = {f"b{i}": several([0, 1]) for i in range(len(table.group))}
        options = enumerate(map(int, table.options))
        self.kinds |= {f"p{i}": several(list(range(many))) for i, many in options}
        self.kinds |= {f"r{i}": real for i in range(len(table.at_reals))}
        self.open: list[Any] = []

    def ask(self) -> tuple[Genome, np.ndarray]:
        """One, repaired."""
        trial = self.study.ask(self.kinds)
        self.open.append(trial)
        kinds = [
            np.array([value for name, value in trial.params.items() if name[0] == kind])
            for kind in "bpr"
        ]
        bits = repaired(kinds[0].astype(bool), self.space, self.chance)
        genome = Genome(bits, kinds[1].astype(np.int32), kinds[2].astype(np.float32))
        return joined([genome]), np.ones(1)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """A suggestion's value, or starting plans, which are suggested and told at once."""
        for row, value in enumerate(values):
            if not self.open:
                bits, picks, reals = one_of(population, row)
                said: dict[str, Any] = {f"b{i}": int(bit) for i, bit in enumerate(bits)}
                said |= {f"p{i}": int(pick) for i, pick in enumerate(picks)}
                said |= {f"r{i}": float(real) for i, real in enumerate(reals)}
                self.study.enqueue_trial(said)
                self.open.append(self.study.ask(self.kinds))
            self.study.tell(self.open.pop(), float(value))


class Smac:
    """SMAC3 in a process of its own, by a Python that has it."""

    def __init__(self, space: Space, seed: int, python: str, trials: int) -> None:
        self.space, self.places = space, Places.of(space)
        self.folder = tempfile.TemporaryDirectory()
        command = [python, str(Path(__file__).parent / "smac_peer.py")]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        layers, models = self.places.has.shape
        said = {"layers": layers, "models": models, "drops": int(space.table.low[0])}
        self.say({**said, "seed": seed, "trials": trials, "folder": self.folder.name})
        self.hear()

    def say(self, what: dict[str, Any]) -> None:
        """One line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """One line of it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("SMAC3 ended")
        return json.loads(line)

    def ask(self) -> tuple[Genome, np.ndarray]:
        """One."""
        self.say({"ask": True})
        plan, at, defaults = self.hear(), self.places, self.space.table.defaults
        bits, reals = np.array(defaults.bits), np.array(defaults.reals)
        bits[at.drop[plan["drop"]]] = True
        bits[at.has] = np.array(plan["has"], bool)
        reals[at.scale] = plan["scale"]
        return joined([Genome(bits, np.array(defaults.picks), reals)]), np.ones(1)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """One after the other."""
        at = self.places
        for row, value in enumerate(values):
            bits, _, reals = one_of(population, row)
            plan = {
                "drop": np.flatnonzero(bits[at.drop]).tolist(),
                "has": bits[at.has].astype(int).tolist(),
                "scale": reals[at.scale].astype(float).tolist(),
            }
            self.say({"tell": plan, "value": float(value)})

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def one_of(population: Genome, row: int) -> Genome:
    """One genome of a population."""
    return Genome(*(np.asarray(gene)[row] for gene in population))


def repaired(bits: np.ndarray, space: Space, chance: np.random.Generator) -> np.ndarray:
    """Every set at its size: bits that are too many go off by chance, or others on."""
    bits = bits.copy()
    for number, (low, high) in enumerate(zip(space.table.low, space.table.high, strict=True)):
        members = np.flatnonzero(space.table.group == number)
        on = int(bits[members].sum())
        off = on - min(max(on, int(low)), int(high))
        from_ = members[bits[members]] if off > 0 else members[~bits[members]]
        changed = chance.choice(from_, abs(off), replace=False) if off else []
        bits[changed] = off < 0
    return bits


Factory = Callable[[Space, int], Searcher]

STAGED = ((16, 1 / 16), (4, 1 / 4), (1, 1.0))
"""How many are tried on which share of the samples: a generation costs three evaluations."""


def peers(smac: str | None, trials: int) -> dict[str, Factory]:
    """Who takes part, by name."""
    found: dict[str, Factory] = {
        name: lambda space, seed, name=name: Ours(strategy_of(name), space, seed)
        for name in STRATEGIES
    }
    for name, make in evosax_peers().items():
        found[name] = lambda space, seed, make=make: Ours(make(), space, seed)
    found["EvoPress"] = lambda space, seed: EvoPress(space, seed, 16, STAGED)
    found["EvoPress, unstaged"] = lambda space, seed: EvoPress(space, seed, 4, ((4, 1.0),))
    for sampler in ("TPE", "NSGA-II"):
        found[f"Optuna {sampler}"] = lambda space, seed, s=sampler: Optuna(space, seed, s)
    if smac is not None:
        found["SMAC3"] = lambda space, seed: Smac(space, seed, smac, trials)
    return found


def ablations() -> dict[str, Factory]:
    """The surrogate without one of its parts, by what it is without."""

    def lonely(space: Space, seed: int) -> Searcher:
        none = space.table._replace(pairs=np.zeros((0, 2), np.int32))
        return Ours(Surrogate(), replace(space, table=none), seed)

    return {
        "without the region of swaps": lambda space, seed: Ours(Surrogate(region=0), space, seed),
        "of twelve parents": lambda space, seed: Ours(Surrogate(elite=12), space, seed),
        "without block influence": lambda space, seed: Unmeasured(Surrogate(), space, seed),
        "without neighbours": lonely,
        "without draws": lambda space, seed: Ours(Surrogate(heats=(0.0,)), space, seed),
        "with wider draws": lambda space, seed: Ours(
            Surrogate(heats=(0.0, 0.5, 1.0, 1.0)), space, seed
        ),
        "without shifts": lambda space, seed: Still(Surrogate(name="still"), space, seed),
        "without starts": lambda space, seed: Blind(Surrogate(), space, seed),
        "of up to three moves": lambda space, seed: Ours(Surrogate(moves=3), space, seed),
    }
