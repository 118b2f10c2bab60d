"""Merge methods: the formula, its measures of whole tensors, and the combination.

A file has a method and its variant, such as the one that elects signs.
"""

from gptailor.methods.arcee_fusion import ArceeFusion
from gptailor.methods.arithmetic import Chunk, Inputs, Kernel
from gptailor.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from gptailor.methods.dare import Dare, DareTies
from gptailor.methods.della import Della, DellaLinear
from gptailor.methods.karcher import Karcher
from gptailor.methods.linear import Linear, TaskArithmetic
from gptailor.methods.model_stock import ModelStock
from gptailor.methods.nearswap import Nearswap
from gptailor.methods.of_function import OfFunction
from gptailor.methods.ram import Ram, RamPlus
from gptailor.methods.sce import Sce
from gptailor.methods.slerp import Multislerp, Nuslerp, Slerp
from gptailor.methods.ties import Ties
from gptailor.plan.registry import METHODS

__all__ = [
    "KERNELS", "Chunk", "Inputs", "Kernel", "arithmetic", "arrays", "kernel_of", "rounding",
    "shapes",
]  # fmt: skip

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Linear(),
        Slerp(),
        TaskArithmetic(),
        Ties(),
        Dare(),
        DareTies(),
        Breadcrumbs(),
        BreadcrumbsTies(),
        DellaLinear(),
        Della(),
        Sce(),
        Ram(),
        RamPlus(),
        ModelStock(),
        Karcher(),
        Nuslerp(),
        Multislerp(),
        Nearswap(),
        ArceeFusion(),
    )
}
"""The computation of each method of gptailor's own, by its name in the registry, in its order."""


def kernel_of(name: str) -> Kernel:
    """Return the computation of a method: gptailor's own, or another package's."""
    return KERNELS.get(name) or OfFunction(METHODS[name])
