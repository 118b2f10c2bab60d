"""The installed packages whose merge methods a program uses."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType

from gptailor.plan.registry import METHODS, Method
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


def provider_of(method: str) -> str:
    """Return the package and a digest of the function's code; empty for gptailor's own methods."""
    return "" if method in METHODS.own else _provider(METHODS[method])


@lru_cache(maxsize=64)
def _provider(method: Method) -> str:
    code = repr(_code(getattr(method.function, "__code__", None)))
    return f"{METHODS.package(method.name)} {hashlib.sha256(code.encode()).hexdigest()}"


def _code(code: object) -> object:
    """Return the parts of a function's code that decide what it computes."""
    if not isinstance(code, CodeType):
        return repr(code)
    return (code.co_code, code.co_names, code.co_varnames, [*map(_code, code.co_consts)])
