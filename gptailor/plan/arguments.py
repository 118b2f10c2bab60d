"""Arguments of functions and fields of settings, checked by their annotations."""

import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from functools import partial, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

Positive = Annotated[int, 1]
"""A whole number of at least 1."""
NotNegative = Annotated[int, 0]
"""A whole number of at least 0."""


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function with a check of its arguments before it runs.

    It receives dtypes and devices of torch as their names, iterators as tuples, and whole numbers
    of NumPy as int. The check raises TypeError for another type than the annotation's, and
    ValueError for a value out of its range; both name the argument.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        hints = _hints(function)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _fitting(name, value, hints.get(name, Any))
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(settings: object) -> None:
    """Check the fields of a dataclass as `checked` does the arguments of a function."""
    for name, hint in _hints(type(settings)).items():
        object.__setattr__(settings, name, _fitting(name, getattr(settings, name), hint))


_NO_RESULT = type("SearchResult", (), {})
"""The type of a search's result until searches are imported, as no value has it."""


def _hints(annotated: Any) -> dict[str, Any]:
    module = sys.modules.get("gptailor.searching.results")
    late = {"SearchResult": getattr(module, "SearchResult", _NO_RESULT)}
    return get_type_hints(annotated, localns=late, include_extras=True)


_REGISTERED = {
    "objectives": "; @gptailor.objective registers a function; give its name: 'name()'",
    "strategy": "; @gptailor.strategy registers a class; give its name",
}
"""The remedies for functions and classes in the place of their names."""


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """Return a value as the function receives it. Raises TypeError and ValueError."""
    plain = _plain(value)
    if fits(plain, hint):
        return plain
    error = ValueError if fits(plain, hint, bounded=False) else TypeError
    got = " ".join(reprlib.repr(value).split())
    is_code = any(map(callable, value if isinstance(value, list | tuple) else [value]))
    help_ = _REGISTERED.get(name, "") if is_code else ""
    raise error(f"'{name}': expected {_words(hint)}, got {got}{help_}")


def _plain(value: Any) -> Any:
    if isinstance(value, Integral) and not (value is True or value is False):
        return int(value)
    if type(value).__module__ == "torch" and type(value).__name__ in {"dtype", "device"}:
        return str(value).removeprefix("torch.")
    return tuple(value) if isinstance(value, Iterator) else value


def fits(value: Any, hint: Any, *, bounded: bool = True) -> bool:
    """Return whether a value has a type; unless `bounded`, also if it is out of the range."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    part_fits = partial(fits, bounded=bounded)
    if kind in {Union, UnionType}:
        return any(part_fits(value, part) for part in parts)
    if kind is Annotated:
        return part_fits(value, parts[0]) and not (bounded and value < parts[1])
    if kind is Literal:
        return isinstance(value, str) and not (bounded and value not in parts)
    if parts and kind is not Callable:
        return _is_filled(value, kind, parts, part_fits)
    if kind in {int, float}:
        return isinstance(value, int if kind is int else Real) and not isinstance(value, bool)
    return kind is Any or isinstance(kind, TypeVar) or isinstance(value, kind)


def _is_filled(value: Any, kind: type, parts: tuple[Any, ...], fits: Callable[..., bool]) -> bool:
    """Return whether a value is a mapping or a list of such parts; a list may be any sequence."""
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, parts[0]) and fits(each, parts[1]) for key, each in value.items()
        )
    if isinstance(value, str | bytes) or not isinstance(
        value, Sequence | Set | KeysView | ValuesView
    ):
        return False
    if kind is tuple and Ellipsis not in parts:
        return len(value) == len(parts) and all(map(fits, value, parts))
    return all(fits(each, parts[0]) for each in value)


def _words(hint: Any) -> str:
    """Return an annotation as users write it: `Mapping[str, str | Path] | None`, `int >= 1`."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in {Union, UnionType} or isinstance(kind, TypeVar):
        return " | ".join(map(_words, parts or kind.__constraints__))
    if kind is Annotated:
        return f"{_words(parts[0])} >= {parts[1]}"
    if kind is Literal:
        return " | ".join(map(repr, parts))
    name = "None" if kind is NoneType else str(kind.__name__)
    if not parts or kind is Callable:
        return name
    return f"{name}[{', '.join('...' if p is Ellipsis else _words(p) for p in parts)}]"
