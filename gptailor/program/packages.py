"""The installed packages with merge methods, fits and objectives that a plan or a program uses."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from gptailor.plan import sites
from gptailor.plan.doors import Door, Package
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import GAP_FITS, METHODS, OBJECTIVES, STRATEGIES, Method
from gptailor.plan.resolved import Gap
from gptailor.program.program import Combine, Program, unfitted


def search_packages(plan: Plan, objectives: Iterable[Objective], strategy: str) -> tuple[str, ...]:
    """Return `NAME of PACKAGE VERSION` for each name of a search that isn't gptailor's own."""
    used = (*_packages(plan, objectives), *_of(STRATEGIES, [strategy]))
    return tuple(f"{name} of {package}" for name, package in used)


def names_of_process(plan: Plan, objectives: Iterable[Objective] = ()) -> list[str]:
    """Return the names of a plan and of objectives that no installed package provides."""
    return [name for name, package in _packages(plan, objectives) if not package.installed]


def _packages(plan: Plan, objectives: Iterable[Objective]) -> Iterator[tuple[str, Package]]:
    """Yield each method, fit and objective that isn't gptailor's own, with its provider."""
    calls = (call for _, recipe in sites.recipes(plan) for _, call in sites.calls(recipe))
    yield from _of(METHODS, (call.name for call in calls))
    yield from _of(GAP_FITS, (bridge.by for bridge in plan.bridges if bridge.by is not None))
    yield from _of(OBJECTIVES, (objective.name for objective in objectives))


def _of(door: Door[Any], names: Iterable[str]) -> Iterator[tuple[str, Package]]:
    for name in dict.fromkeys(names):
        if (package := door.package(name)) is not None:
            yield name, package


_CONSTANTS = (bool, int, float, complex, str, bytes, tuple, type(None))


def method_packages(program: Program, gaps: Iterable[Gap]) -> dict[str, str]:
    """Return package and version by the name of each method or fit that isn't gptailor's own."""
    used = {name for output in program.outputs for name in _methods(unfitted(output.make))}
    used -= METHODS.own
    fits = {gap.by for gap in gaps if gap.by}
    found = {name: str(METHODS.package(name)) for name in used}
    return found | {name: str(GAP_FITS.package(name)) for name in fits}


def _methods(make: object) -> Iterator[str]:
    """Yield the methods of an instruction and of its source tensors."""
    if isinstance(make, Combine):
        yield make.method
        for tensor in make.tensors:
            yield from _methods(tensor.form)


def provider_of(method: str) -> str:
    """Return the package and a digest of its code; empty for gptailor's own methods."""
    return "" if method in METHODS.own else _provider(METHODS[method])


def fit_provider(name: str | None) -> str:
    """Return the package of a gap's fit and a digest of its code; empty for gptailor's own."""
    return "" if name is None else _provider_of_fit(name, GAP_FITS[name])


@lru_cache(maxsize=64)
def _provider_of_fit(name: str, fit: type) -> str:
    return f"{GAP_FITS.package(name)} {_digest(fit).hexdigest()}"


@lru_cache(maxsize=64)
def _provider(method: Method) -> str:
    digest = _digest(method.function)
    digest.update(repr(_code(method.function, set())).encode())
    return f"{METHODS.package(method.name)} {digest.hexdigest()}"


def _digest(value: object) -> "hashlib._Hash":
    """Return the sha256 of the sources that define a function or a class."""
    digest = hashlib.sha256()
    for file in _source_files(getattr(value, "__module__", None) or ""):
        digest.update(file.read_bytes())
    return digest


def _source_files(module: str) -> list[Path]:
    """Return the source files of a module's package; empty for a notebook's cells."""
    for name in (module.partition(".")[0], module):
        if file := getattr(sys.modules.get(name), "__file__", None):
            path = Path(file)
            found = path.parent.rglob("*.py") if path.stem == "__init__" else [path]
            return sorted(each for each in found if each.is_file())
    return []


def _code(value: object, seen: set[int]) -> object:
    """Return the causes of a function's values: code, defaults, and globals that it names."""
    if isinstance(value, CodeType):
        consts = [_code(const, seen) for const in value.co_consts]
        return value.co_code, value.co_names, value.co_varnames, consts
    if not isinstance(value, FunctionType):
        return value if isinstance(value, _CONSTANTS) else type(value).__name__
    if id(value) in seen:
        return value.__qualname__
    seen.add(id(value))
    named = [value.__globals__.get(name) for name in value.__code__.co_names]
    inside = [_code(each, seen) for each in named]
    return _code(value.__code__, seen), value.__defaults__, value.__kwdefaults__, inside
