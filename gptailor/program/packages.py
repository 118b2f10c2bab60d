"""The installed packages whose merge methods a program uses."""

from collections.abc import Iterator

from gptailor.plan.registry import METHODS
from gptailor.program.program import Combine, Program


def method_packages(program: Program) -> dict[str, str]:
    """Return package and version by the name of each method that isn't gptailor's own."""
    if len(METHODS) == len(METHODS.own):
        return {}
    used = {name for output in program.outputs for name in _methods(output.make)}
    foreign = sorted(used - METHODS.own)
    return {name: str(METHODS.package(name)) for name in foreign}


def _methods(make: object) -> Iterator[str]:
    """Yield the methods of an instruction, and those of the tensors that it is made of."""
    if isinstance(make, Combine):
        yield make.method
        for tensor in make.tensors:
            yield from _methods(tensor.form)
