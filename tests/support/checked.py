"""Annotations without shapes are checked by beartype alone, which takes a third of the time.

`jaxtyping.jaxtyped` binds each call's arguments by their names and checks them twice, so that the
names of a shape's axes agree. Where no annotation has axes, there is nothing to agree.
"""

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, TypeVar, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

Checker = Callable[..., Any]

checker: Checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, which takes an int for a float, as type checkers do."""

by_jaxtyping: Checker = jaxtyping.jaxtyped


def jaxtyped(checked: Any = None, *, typechecker: Checker) -> Any:
    """Decorate a function for jaxtyping's import hook, in place of `jaxtyping.jaxtyped`."""
    if checked is None:
        return lambda given: jaxtyped(given, typechecker=typechecker)
    if isinstance(checked, staticmethod | classmethod):
        return type(checked)(jaxtyped(checked.__func__, typechecker=typechecker))
    if inspect.isclass(checked) and "__dataclass_params__" in vars(checked):
        its = jaxtyped(checked.__init__, typechecker=typechecker)
        checked.__init__ = its  # type: ignore[method-assign]
        return checked
    if inspect.isfunction(checked) and not _has_axes(checked):
        return typechecker(checked)
    return by_jaxtyping(checked, typechecker=typechecker)


def _has_axes(function: Callable[..., Any]) -> bool:
    """Return True for annotations with axes, for unreadable ones, and for generators."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return True
    return inspect.isgeneratorfunction(function) or any(map(_is_of_axes, hints.values()))


def _is_of_axes(hint: Any) -> bool:
    if isinstance(hint, TypeVar | ForwardRef | str):  # a type that has itself as a part
        return True
    if isinstance(hint, list | tuple):  # the arguments of a Callable
        return any(map(_is_of_axes, hint))
    where = getattr(hint, "__module__", None) or "", type(hint).__module__
    return any(item.startswith("jaxtyping") for item in where) or any(
        map(_is_of_axes, get_args(hint))
    )


def install() -> None:
    """For all modules that are imported from now on."""
    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
