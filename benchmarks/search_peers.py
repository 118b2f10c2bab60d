"""Searchers behind one interface: gptailor's strategies and their peers.

Each receives the same starting plans, and is then asked for plans, as genomes of one space.
`search_parameters.py` is the adapter to optimisers of flat parameters.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.search_evosax import evosax_peers
from benchmarks.search_landscapes import joined
from benchmarks.search_parameters import Parameter, Parameters
from gptailor.plan.registry import STRATEGIES
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import folded, key_of
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import canonical
from gptailor.searching.strategies import moves, strategy_of
from gptailor.searching.strategies.surrogate import Surrogate

PROCESS = Path(__file__).with_name("search_process.py")
CAPACITY = 256
"""Capacity for trials of gptailor's strategies."""


class Searcher(Protocol):
    """A searcher: it proposes plans, and receives their values."""

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Return genomes, and the share of the samples for each."""

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Receive the values of an ask, or of starting plans."""


class Ours:
    """A strategy of gptailor."""

    def __init__(self, strategy: Any, space: Space, seed: int, capacity: int = CAPACITY) -> None:
        self.strategy, self.table = strategy, space.table
        self.key, self.capacity = key_of(seed), capacity
        self.asks = 0
        self.measured(None)

    def measured(self, prior: np.ndarray | None) -> None:
        """Receive the layers' block influence before any values."""
        self.state = self.strategy.init(self.table, self.capacity, self.key, 1, prior)

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask with a key from the number of the ask."""
        key = folded(self.key, self.asks)
        self.asks += 1
        population, shares, self.state = self.strategy.ask(self.table, self.state, key, np.ones(1))
        return population, shares

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell all values at once."""
        told = np.asarray(values, np.float32)[:, None], np.asarray(shares, np.float32)
        self.state = self.strategy.tell(self.table, self.state, population, *told)


class Unmeasured(Ours):
    """A strategy without block influence."""

    def measured(self, prior: np.ndarray | None) -> None:
        """Ignore block influence."""
        super().measured(None)


class Blind(Ours):
    """A strategy without the starting plans."""

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell only the values of an ask."""
        if self.asks:
            super().tell(population, values, shares)


class Still(Ours):
    """A strategy without shifts of dropped windows."""

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask without the shifts of windows."""
        kept, moves.SHIFT = moves.SHIFT, 0.0
        try:
            return super().ask()
        finally:
            moves.SHIFT = kept


class EvoPress:
    """The scheme of EvoPress (arXiv 2410.14649), written from its paper: (1 + λ), staged.

    Each offspring has min(a, b) mutations, where a and b are 1 to 3. A mutation swaps a chosen and
    another member of a set of an exact size, or changes another choice (an addition to the paper).
    The offspring are tried on few samples, and the best of them on more. The best of the last stage
    and the parent is the next parent.
    """

    def __init__(
        self, space: Space, seed: int, offspring: int, stages: tuple[tuple[int, float], ...]
    ) -> None:
        self.table = space.table
        self.sets = [
            np.flatnonzero(self.table.group == number)
            for number, (low, high) in enumerate(zip(self.table.low, self.table.high, strict=True))
            if low == high
        ]
        taken = np.concatenate(self.sets) if self.sets else np.zeros(0, int)
        self.free = np.setdiff1d(np.arange(len(self.table.group)), taken)
        self.chance = np.random.default_rng(seed)
        self.offspring, self.stages = offspring, stages
        self.parent: Genome | None = None
        self.value = np.inf
        self.stage = 0
        self.survivors: Genome | None = None

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask for offspring, or for the best of them on more samples."""
        if self.survivors is None:
            self.stage = 0
            mutants = joined([self.mutant() for _ in range(self.offspring)])
            self.survivors = canonical(self.table, mutants)
        share = self.stages[self.stage][1]
        return self.survivors, np.full(len(self.survivors.bits), share)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell starting plans, then the stage that was asked for."""
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
        """Return one offspring of the parent; inactive genes may have any value."""
        chance = self.chance
        assert self.parent is not None, "starting plans are told first"
        genome = Genome(*map(np.array, self.parent))
        bits, picks, reals = genome
        kinds = [bool(self.sets), len(self.free) > 0, len(picks) > 0, len(reals) > 0]
        weights = np.where(kinds, (0.5, 0.35, 0.35, 0.15), 0.0)
        for _ in range(min(chance.integers(1, 4), chance.integers(1, 4))):
            kind = int(chance.choice(4, p=weights / weights.sum()))
            if kind == 0:
                self.swap(genome, self.sets[chance.integers(len(self.sets))])
            elif kind == 1:
                bits[chance.choice(self.free)] ^= True
            elif kind == 2:
                pick = chance.integers(len(picks))
                picks[pick] = chance.integers(self.table.options[pick])
            else:
                real = chance.integers(len(reals))
                reals[real] = np.clip(reals[real] + chance.normal(scale=STEP), 0, 1)
        return genome

    def swap(self, genome: Genome, members: np.ndarray) -> None:
        """Swap a chosen and another member; the choices of the kept layer move with it."""
        gone = self.chance.choice(members[genome.bits[members]])
        kept = self.chance.choice(members[~genome.bits[members]])
        genome.bits[[gone, kept]] = False, True
        here, there = self.table.at_bits[[gone, kept]]
        at = np.where(np.isin(np.arange(len(genome.bits)), self.free), self.table.at_bits, -2)
        places = (at, self.table.at_picks, self.table.at_reals)
        for genes, places_of in zip(genome, places, strict=True):
            genes[places_of == here] = genes[places_of == there]


class OneShot:
    """No search, only the starting plans."""

    def __init__(self, space: Space) -> None:
        self.none = Genome(*(np.asarray(gene)[None][:0] for gene in space.table.defaults))

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask for nothing."""
        return self.none, np.zeros(0)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Learn nothing."""


class Optuna:
    """A sampler of Optuna. It learns from its own suggestions."""

    def __init__(self, space: Space, seed: int, sampler: str) -> None:
        import optuna  # a peer that other runs don't need

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        of = optuna.samplers
        samplers: dict[str, Callable[[], Any]] = {
            "TPE": lambda: of.TPESampler(seed=seed, multivariate=True),
            "GP": lambda: of.GPSampler(seed=seed, deterministic_objective=True),
            "NSGA-II": lambda: of.NSGAIISampler(seed=seed, population_size=16),
        }
        self.parameters = Parameters(space)
        self.study = optuna.create_study(sampler=samplers[sampler]())
        self.kinds = {one.name: distribution(one) for one in self.parameters.all}
        self.trial = optuna.trial.create_trial
        self.open: list[Any] = []

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask for one plan."""
        trial = self.study.ask(self.kinds)
        self.open.append(trial)
        return joined([self.parameters.genome(trial.params)]), np.ones(1)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell the suggestion's value, or starting plans."""
        if self.open:
            self.study.tell(self.open.pop(), float(values[0]))
            return
        for row, value in enumerate(values):
            params = self.parameters.values(one_of(population, row))
            kinds = self.kinds
            self.study.add_trial(self.trial(params=params, distributions=kinds, value=float(value)))


def distribution(parameter: Parameter) -> Any:
    """Return Optuna's distribution of a parameter."""
    from optuna import distributions as kinds  # a peer that other runs don't need

    if parameter.kind == "real":
        return kinds.FloatDistribution(0.0, 1.0)
    if parameter.kind == "whole":
        return kinds.IntDistribution(0, parameter.count - 1)
    return kinds.CategoricalDistribution(list(range(parameter.count)))


class CatCma:
    """CatCMA with margin (arXiv 2504.07884), started around the best starting plan."""

    def __init__(self, space: Space, seed: int) -> None:
        self.parameters, self.seed = Parameters(space), seed
        of = self.parameters.all
        self.names = [
            [one.name for one in of if one.kind == kind] for kind in ("real", "whole", "category")
        ]
        self.counts = {one.name: one.count for one in of}
        self.told: list[tuple[Any, float]] = []
        self.open: list[Any] = []
        self.algorithm: Any = None

    def begin(self, best: Genome) -> None:
        """Begin around a plan."""
        from cmaes import CatCMAwM  # a peer that other runs don't need

        reals, wholes, categories = self.names
        start = self.parameters.values(best)
        options = [self.counts[name] for name in categories]
        spans = [self.counts[name] - 1 for name in wholes]
        likely = np.full((len(options), max(options, default=1)), 0.0)
        for row, name in enumerate(categories):
            likely[row, : options[row]] = 0.5 / options[row]
            likely[row, int(start[name])] += 0.5
        self.algorithm = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(reals) or None,
            z_space=[list(range(self.counts[name])) for name in wholes] or None,
            c_space=options or None,
            mean=np.array([start[name] for name in (*reals, *wholes)], float),
            cov=np.diag((WIDTH * np.array([*([1.0] * len(reals)), *spans])) ** 2),
            cat_param=likely if options else None,
            seed=self.seed + 1,
        )

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask for one plan."""
        solution = self.algorithm.ask()
        self.open.append(solution)
        reals, wholes, categories = self.names
        values = dict(zip(reals, solution.x, strict=True)) if reals else {}
        values |= dict(zip(wholes, solution.z, strict=True)) if wholes else {}
        if categories:
            values |= dict(zip(categories, solution.c.argmax(axis=1), strict=True))
        return joined([self.parameters.genome(values)]), np.ones(1)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell the suggestion's value; a population is told at once."""
        if self.algorithm is None:
            self.begin(one_of(population, int(np.argmin(values))))
            return
        self.told.append((self.open.pop(), float(values[0])))
        if len(self.told) == self.algorithm.population_size:
            self.algorithm.tell(self.told)
            self.told = []


class Elsewhere:
    """An optimiser in another process, with a Python that has its package."""

    def __init__(
        self, space: Space, seed: int, name: str, python: str, trials: int, *, slots: bool = False
    ) -> None:
        self.parameters = Parameters(space, slots=slots)
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, str(PROCESS), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        described = {"parameters": self.parameters.described(), "seed": seed, "trials": trials}
        self.say({**described, "folder": self.folder.name})
        self.hear()

    def say(self, what: dict[str, Any]) -> None:
        """Send one line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """Return one line of it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the optimiser's process ended early")
        return json.loads(line)

    def ask(self) -> tuple[Genome, np.ndarray]:
        """Ask for one plan."""
        self.say({"ask": True})
        return joined([self.parameters.genome(self.hear())]), np.ones(1)

    def tell(self, population: Genome, values: np.ndarray, shares: np.ndarray) -> None:
        """Tell plans and their values, one after another."""
        for row, value in enumerate(values):
            told = self.parameters.values(one_of(population, row))
            self.say({"tell": told, "value": float(value)})

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def one_of(population: Genome, row: int) -> Genome:
    """Return one genome of a population."""
    return Genome(*(np.asarray(gene)[row] for gene in population))


Factory = Callable[[Space, int], Searcher]

WIDTH = 1 / 6
"""The initial standard deviation of CatCMAwM, as a share of an interval."""
STEP = 0.2
"""The standard deviation of a mutated number, as a share of its interval."""
STAGED = ((16, 1 / 16), (4, 1 / 4), (1, 1.0))
"""Numbers of offspring by share of the samples; a generation costs three evaluations."""


def peers(pythons: Mapping[str, str | None], trials: int) -> dict[str, Factory]:
    """Return all searchers by name; `pythons` run the peers in other processes."""
    found: dict[str, Factory] = {
        name: partial(_ours, partial(strategy_of, name)) for name in STRATEGIES
    }
    for name, make in evosax_peers().items():
        found[name] = partial(_ours, make)
    found["EvoPress"] = lambda space, seed: EvoPress(space, seed, 16, STAGED)
    found["EvoPress, unstaged"] = lambda space, seed: EvoPress(space, seed, 4, ((4, 1.0),))
    found["one-shot"] = lambda space, seed: OneShot(space)
    for sampler in ("TPE", "GP", "NSGA-II"):
        found[f"Optuna {sampler}"] = partial(Optuna, sampler=sampler)
    if find_spec("cmaes") is not None:
        found["CatCMAwM"] = CatCma
    for name, python in pythons.items():
        if python is not None:
            elsewhere = partial(Elsewhere, name=name, python=python, trials=trials)
            found |= {name: elsewhere, f"{name}, slots": partial(elsewhere, slots=True)}
    return found


def _ours(make: Callable[[], Any], space: Space, seed: int) -> Searcher:
    return Ours(make(), space, seed)


def ablations() -> dict[str, Factory]:
    """Return the surrogate without one of its parts, by the name of the part."""

    def lonely(space: Space, seed: int) -> Searcher:
        none = space.table._replace(pairs=np.zeros((0, 2), np.int32))
        return Ours(Surrogate(), replace(space, table=none), seed)

    def unmeasured_gaps(space: Space, seed: int) -> Searcher:
        none = space.table._replace(gap_errors=None)
        return Ours(Surrogate(), replace(space, table=none), seed)

    return {
        "without measured gaps": unmeasured_gaps,
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
    }
