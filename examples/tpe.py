"""A search strategy that asks Optuna's TPE, for a package as in docs/extending.md."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

import gptailor
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.table import canonical, exact
from gptailor.searching.strategies.strategy import scalarise

optuna.logging.set_verbosity(optuna.logging.ERROR)


@gptailor.strategy("tpe", "asks Optuna's tree-structured Parzen estimator")
@dataclass(frozen=True)
class Tpe(gptailor.Strategy):
    """Genomes that Optuna's TPE asks for, given all finished trials."""

    name: str = "tpe"
    population: int = 4

    def _ask(self, table: Any, state: Any, key: Any, weights: Any) -> Any:
        kinds: dict[str, BaseDistribution] = {
            f"b{n}": CategoricalDistribution((0, 1)) for n in range(len(table.group))
        }
        kinds |= {
            f"p{n}": CategoricalDistribution(tuple(range(count)))
            for n, count in enumerate(table.options.tolist())
        }
        kinds |= {f"r{n}": FloatDistribution(0, 1) for n in range(len(table.at_reals))}
        sampler = optuna.samplers.TPESampler(seed=int(key[0]))
        study = optuna.create_study(sampler=sampler)
        archive = state.archive
        for row, value in enumerate(scalarise(archive.values, weights)):
            if np.isfinite(value):
                genes = np.concatenate([genes[row] for genes in archive.genomes])
                params = {
                    name: float(gene) if name[0] == "r" else int(gene)
                    for name, gene in zip(kinds, genes, strict=True)
                }
                study.add_trial(
                    optuna.trial.create_trial(
                        params=params, distributions=kinds, value=float(value)
                    )
                )
        rows = [study.ask(kinds).params for _ in range(self.population)]

        def asked(kind: str) -> Any:
            names = [name for name in kinds if name[0] == kind]
            return np.array([[row[name] for name in names] for row in rows]).reshape(len(rows), -1)

        tie = np.random.default_rng(int(key[1])).random(len(table.group)) / 2
        bits = exact(table, asked("b") * 2.0 - 1 + tie)  # the right number of bits in each set
        picks, reals = asked("p").astype(np.int32), asked("r").astype(np.float32)
        shares = np.ones(self.population, np.float32)
        return canonical(table, Genome(bits, picks, reals)), shares, state.own
