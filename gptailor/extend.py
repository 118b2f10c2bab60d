"""Decorators that add merge methods, objectives and strategies to gptailor's language.

A notebook needs nothing else. A package also names the decorated object in an entry-point group:
`gptailor.methods`, `gptailor.objectives` or `gptailor.strategies`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gptailor.plan.doors import Door
from gptailor.plan.registry import (
    METHODS,
    OBJECTIVES,
    STRATEGIES,
    Argument,
    Method,
    ObjectiveSpec,
    Parameter,
    StrategySpec,
)

if TYPE_CHECKING:
    from gptailor.searching.strategies.strategy import Strategy

__all__ = ["Parameter", "merge_method", "objective", "strategy"]

_Class = TypeVar("_Class", bound="type[Strategy]")
_Entry = TypeVar("_Entry", Method, ObjectiveSpec, StrategySpec)


def merge_method(  # noqa: PLR0913 (a method's declaration)
    name: str,
    *,
    formula: str,
    parameters: Sequence[Parameter] = (),
    least: int = 1,
    most: int | None = None,
    needs_base: bool = False,
    by_entry: bool = False,
) -> Callable[[Callable[..., Any]], Method]:
    """Register a function of tensors as a merge method.

    The function receives `(sources, base, **arguments)`: a list of NumPy's float32
    arrays, the base's array if `needs_base`, and an argument for each of the `parameters`. It
    returns an array of the same shape. It must not change its inputs. With `by_entry` each entry is
    computed alone, so the arrays are flat stretches and memory stays small. `least` and `most`
    bound the number of sources. Raises ValueError for a name that is taken.
    """

    method = Method(name, formula, tuple(parameters), least, most, needs_base, by_entry=by_entry)
    return _registering(METHODS, name, method)


def objective(
    name: str,
    *,
    direction: Literal["minimize", "maximize"],
    reads: Literal["answer", "text"] = "answer",
    unit: str = "",
) -> Callable[[Callable[..., Any]], ObjectiveSpec]:
    """Register a function as an objective of one file.

    If the objective reads rows with a context and an answer, the function receives
    `(context, answer, text)` and returns a number. `text` is the plan's continuation, decoded
    greedily: its first line, or all lines if an answer of the row has several. It has at most eight
    tokens more than the row's longest answer. If the objective reads text, the function receives
    `(logits, targets)` of the shapes [n, vocabulary] and [n], and returns a tensor [n]. The score
    is the mean. A NaN is a failure. Raises ValueError for a taken name.
    """

    file = Argument("file", "path", required=True, rows=reads)
    return _registering(OBJECTIVES, name, ObjectiveSpec(name, direction, (file,), unit=unit))


def strategy(name: str, words: str) -> Callable[[_Class], StrategySpec]:
    """Register a subclass of `gptailor.Strategy` as a search strategy; `words` describe it.

    The class is called without arguments for each search. Raises ValueError for a taken name, and
    TypeError for anything else than such a class.
    """
    from gptailor.searching.strategies.strategy import Strategy  # imports NumPy

    return _registering(STRATEGIES, name, StrategySpec(words), "make", Strategy)


def _registering(
    door: Door[_Entry],
    name: str,
    entry: _Entry,
    field: str = "function",
    above: type | None = None,
) -> Callable[[Any], _Entry]:
    """Return a decorator that registers an entry with the decorated object in a field of it.

    With `above` the object must be a class below that one.
    """

    def register(decorated: Any) -> _Entry:
        if above and not (isinstance(decorated, type) and issubclass(decorated, above)):
            raise TypeError(
                f"'{name}': expected a subclass of gptailor.{above.__name__}, got {decorated!r:.80}"
            )
        complete = replace(entry, **{field: decorated})
        door.add(name, complete, decorated.__module__)
        return complete

    return register
