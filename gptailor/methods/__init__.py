"""Merge methods, a file each: the formula, what it measures of whole tensors, how it combines."""

from gptailor.methods.arithmetic import Chunk, Inputs, Kernel
from gptailor.methods.breadcrumbs import Breadcrumbs
from gptailor.methods.dare import Dare
from gptailor.methods.karcher import Karcher
from gptailor.methods.linear import Linear
from gptailor.methods.model_stock import ModelStock
from gptailor.methods.slerp import Slerp
from gptailor.methods.task_arithmetic import TaskArithmetic
from gptailor.methods.ties import Ties

__all__ = ["KERNELS", "Chunk", "Inputs", "Kernel", "arithmetic"]

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Linear(),
        Slerp(),
        TaskArithmetic(),
        Ties(),
        Dare(),
        Breadcrumbs(),
        ModelStock(),
        Karcher(),
    )
}
"""How each method of the registry is computed, by its name there and in the same order."""
