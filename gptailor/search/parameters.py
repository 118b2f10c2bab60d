"""A genome as Optuna has it: parameters by the genes' names, and what else each could have been."""

from typing import Any, final

import jax
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from gptailor.search.genes import Gene, Pick, Real
from gptailor.search.genome import Active, Genome
from gptailor.search.space import Space
from gptailor.search.table import active


@final
class Naming:
    """Names a space's genomes; genes that say nothing are left out."""

    def __init__(self, space: Space) -> None:
        self._genes: tuple[tuple[Gene, ...], ...] = (space.bits, space.picks, space.reals)
        self._active = jax.jit(lambda genome: active(space.table, genome))
        self._distributions = {gene.name: _distribution(gene) for of in self._genes for gene in of}

    def __call__(self, genome: Genome) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """The values of active genes in the plan's own terms, and their distributions."""
        counts: Active = self._active(genome)
        values = {
            gene.name: _value(gene, genes[i])
            for of, genes, says in zip(self._genes, genome, counts, strict=True)
            for i, gene in enumerate(of)
            if says[i]
        }
        return values, {name: self._distributions[name] for name in values}


def _distribution(gene: Gene) -> BaseDistribution:
    if isinstance(gene, Real):
        return FloatDistribution(gene.low, gene.high, log=gene.log)
    return CategoricalDistribution(gene.labels if isinstance(gene, Pick) else (False, True))


def _value(gene: Gene, found: Any) -> bool | str | float:
    if isinstance(gene, Real):
        return gene.value(float(found))
    return gene.labels[int(found)] if isinstance(gene, Pick) else bool(found)
