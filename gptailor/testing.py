"""The contracts of merge methods, objectives and strategies, for the tests of a package.

Each function raises ContractError with the broken promise. gptailor's own entries pass the same.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np

from gptailor.methods import Chunk, Inputs, kernel_of
from gptailor.plan.doors import Door
from gptailor.plan.registry import METHODS, OBJECTIVES, STRATEGIES, Parameter

if TYPE_CHECKING:
    from gptailor.searching.space.genome import Genome
    from gptailor.searching.space.space import Space

_Entry = TypeVar("_Entry")

__all__ = ["ContractError", "check_method", "check_objective", "check_strategy"]


@final
class ContractError(AssertionError):
    """A promise of a method, an objective or a strategy that is broken."""


def _promise(holds: object, words: str) -> None:
    if not holds:
        raise ContractError(words)


def _entry(table: Door[_Entry], name: str) -> _Entry:
    entry = table.get(name)
    if entry is None:
        raise ContractError(table.problem(name) or f"there is no {table.kind} '{name}'")
    return entry


# ------------------------------------------------------------------------------------- methods


def check_method(name: str, *, sources: int = 2, **arguments: Any) -> None:
    """Check a merge method on random tensors: shape, finite numbers, and the same bytes each time.

    `arguments` are the method's; missing ones have their defaults. The bytes are the same for a
    tensor in chunks, and with several threads. The inputs stay unchanged.
    """
    method = _entry(METHODS, name)
    defaults = {p.name: _default(p, sources) for p in method.parameters}
    made = {**defaults, **arguments}
    for shape in ((16, 12), (1, 1), (33,), (0, 4)):
        draw = np.random.default_rng(0)
        tensors = [draw.standard_normal(shape).astype(np.float32) for _ in range(sources + 1)]
        before = [tensor.copy() for tensor in tensors]
        whole = _merged(name, tensors, made, max(1, tensors[0].size))
        _promise(whole.shape == (tensors[0].size,), f"'{name}' changes a tensor's shape")
        _promise(np.isfinite(whole).all(), f"'{name}' makes infinity or NaN of finite numbers")
        same = all(np.array_equal(a, b) for a, b in zip(tensors, before, strict=True))
        _promise(same, f"'{name}' changes its inputs")
        for step, threads in ((5, 1), (7, 3)):
            again = _merged(name, tensors, made, step, threads)
            words = f"'{name}' gives other bytes in chunks of {step} entries"
            _promise(again.tobytes() == whole.tobytes(), f"{words} and {threads} threads")


def _default(parameter: Parameter, sources: int) -> Any:
    value = 1 / sources if parameter.default is None else parameter.default
    return (value,) * sources if parameter.each or parameter.variadic else value


def _merged(
    name: str, tensors: Sequence[np.ndarray], arguments: dict[str, Any], step: int, threads: int = 1
) -> np.ndarray:
    """Return the merge of the tensors after the first, the base, in chunks of `step` entries."""
    kernel = kernel_of(name)
    base, *flat = (tensor.reshape(-1) for tensor in tensors)
    needs_base = METHODS[name].takes_base(arguments)

    def read(start: int, end: int) -> Chunk:
        of_base = base[start:end] if needs_base else None
        return Chunk(start, of_base, tuple(source[start:end] for source in flat))

    models = tuple(f"m{n}" for n in range(len(flat)))
    inputs = Inputs(base.size, models, "place", step, read, tensors[0].shape)
    if not base.size:
        return base
    measured = kernel.measure(inputs, arguments)
    chunks = [*inputs.chunks(kernel.unit(inputs, arguments))]
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda chunk: kernel.combine(chunk, arguments, measured), chunks)
        return np.concatenate([np.asarray(part, np.float32) for part in parts])


# ---------------------------------------------------------------------------------- objectives


def check_objective(name: str) -> None:
    """Check the function of an objective: a number for each text, or a tensor for each token.

    A token's number must not depend on the other tokens of its batch.
    """
    import torch

    from gptailor.evaluation.objectives.of_function import number_of, numbers_of

    spec = _entry(OBJECTIVES, name)
    _promise(spec.function is not None, f"'{name}' is gptailor's own objective")
    if spec.arguments[0].rows == "answer":
        for text in ("", "an answer", "another\nanswer", "ö 答"):
            first, second = (number_of(spec, "a context", "an answer", text) for _ in range(2))
            _promise(isfinite(first), f"'{name}' gives {first} for the text {text!r}")
            _promise(first == second, f"'{name}' gives two numbers for one text")
        return
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 11), torch.arange(6)
    whole = numbers_of(spec, logits, targets)
    _promise(whole.isfinite().all(), f"'{name}' gives NaN or infinity")
    parts = [numbers_of(spec, logits[n : n + 1], targets[n : n + 1]) for n in range(6)]
    words = f"a token's number by '{name}' depends on the other tokens"
    _promise(torch.allclose(whole, torch.cat(parts), equal_nan=True), words)


# ---------------------------------------------------------------------------------- strategies

SPACES = {
    "mixed": (
        "drop any 2 of L0..L5\n"
        "L0..L5 from any of math, code by one of (task_arithmetic(0.0..1.0), ties(0.2..0.8))",
        6,
    ),
    "bits": ("drop any 2 of L1..L6", 8),
    "counts": ("drop any 2..4 of L0..L6\nmaybe drop any 1..2 of L7..L9", 12),
    "windows": ("drop window 2..4 of L0..L7\nmaybe drop window 2 of L8..L11", 14),
    "reals": ("scale L1 by 0.5..2.0\nscale L2 by 0.5..2.0", 4),
    "picks": ("L1..L3 from one of base, math, code", 4),
    "one": ("L1 from one of base, math", 4),
}
"""Spaces of every kind: their statements, and the layers of the base."""
_MODELS = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'
_CAPACITY = 40
_ONE = np.ones(1)


def space_named(name: str) -> "Space":
    """Return one of `SPACES`."""
    from gptailor.lang.parse import loads
    from gptailor.searching.space.space import space_of

    statements, layers = SPACES[name]
    return space_of(loads(_MODELS + statements), layers)


def losses_of(population: "Genome") -> np.ndarray:
    """Return a fitness, [n, 1]: fewer first bits, lower options and reals near 0.3 are better."""
    bits = (population.bits * (1 + np.arange(population.bits.shape[1]))).sum(axis=1)
    reals = ((population.reals - 0.3) ** 2).sum(axis=1)
    total: np.ndarray = (bits + population.picks.sum(axis=1) + reals).astype(np.float32)
    return total[:, None]


def check_valid(of: "Space", population: "Genome", shares: np.ndarray, many: int) -> None:
    """Check that an ask has `many` canonical genomes of the space, with shares in (0, 1]."""
    from gptailor.searching.strategies.foreign import broken_promise

    words = broken_promise(of.table, population, shares, many)
    _promise(not words, words)


def check_strategy(name: str) -> None:
    """Check a search strategy on spaces of every kind.

    Asked genomes are in the space. The key alone decides. A failure neither wins nor breaks. With
    several objectives every weight has an ask.
    """
    _entry(STRATEGIES, name)
    for kind in SPACES:
        _check_on(name, space_named(kind))


def _check_on(name: str, of: "Space") -> None:
    from gptailor.searching.space.hash_random import key_of
    from gptailor.searching.space.table import sample
    from gptailor.searching.strategies import strategy_of

    strategy = strategy_of(name)
    many = strategy.population

    def told(values: np.ndarray | None = None) -> Any:
        state = strategy.init(of.table, _CAPACITY, key_of(0))
        for seed in (100, 101):
            found = sample(of.table, key_of(seed), 4)
            found_values = losses_of(found) if values is None else values
            state = strategy.tell(of.table, state, found, found_values, np.ones(4))
        return state

    first, again = (strategy.ask(of.table, told(), key_of(1), _ONE) for _ in range(2))
    pairs = zip(first[0], again[0], strict=True)
    _promise(all(np.array_equal(a, b) for a, b in pairs), f"'{name}': one key gives two asks")
    failures = np.full((4, 1), np.nan)
    for begun in (strategy.init(of.table, _CAPACITY, key_of(0)), told(), told(failures)):
        state = begun
        for turn in range(3):
            population, shares, state = strategy.ask(of.table, state, key_of(turn), _ONE)
            check_valid(of, population, shares, many)
            values = losses_of(population)
            values[0] = np.nan if turn == 1 else values[0]
            state = strategy.tell(of.table, state, population, values, shares)
        best = state.archive.values[np.isfinite(state.archive.values)]
        _promise(len(best), f"'{name}': failures displace every score of the archive")
    two = strategy.init(of.table, _CAPACITY, key_of(0), 2)
    found = sample(of.table, key_of(7), 4)
    both = np.concatenate([losses_of(found), -losses_of(found)], axis=1)
    two = strategy.tell(of.table, two, found, both, np.ones(4))
    for share in (0.0, 0.7, 1.0):
        population, shares, two = strategy.ask(
            of.table, two, key_of(1), np.array([share, 1 - share])
        )
        check_valid(of, population, shares, many)
