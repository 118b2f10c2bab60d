"""A rule as data: its codes, its function, its stage, and the unread statements that excuse it."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar, final

from gptailor.plan.faults import Fault, Place

_Subject = TypeVar("_Subject")

NO_FILE, NAME_FILE = "the name of the text is empty", 'name a file, such as "text.txt"'
"""The fault of a fit's text with an empty name, and its remedy."""
ANYWHERE = ("*",)
"""The `missing_in` of a rule that reports something missing which any statement may hold."""


@final
@dataclass(frozen=True, eq=False)
class Rule(Generic[_Subject]):
    """The codes of a rule's faults, and the function that yields them.

    A subject is a `Plan` by itself, or `Checked`: a plan with its models. Codes of files (`C…`),
    which a rule passes on, are not listed. `missing_in` are the first words of statements that may
    hold the thing that the rule reports as missing. Rules of a later `stage` suppose that those
    before it found no errors.
    """

    codes: tuple[str, ...]
    check: Callable[[_Subject], Iterable[Fault]]
    missing_in: tuple[str, ...] = ()
    stage: int = 3

    def is_unread(self, unread: frozenset[str]) -> bool:
        """Return whether an unread statement may contain an entry that the rule misses.

        `unread` are the first words of such statements, empty for one that begins like no other.
        """
        if not unread or not self.missing_in:
            return False
        return self.missing_in == ANYWHERE or not unread.isdisjoint(("", *self.missing_in))


def rule(
    *codes: str, missing_in: tuple[str, ...] = (), stage: int = 3
) -> Callable[[Callable[[_Subject], Iterable[Fault]]], Rule[_Subject]]:
    """Return a decorator that makes a function a rule with these codes."""
    return lambda check: Rule(codes, check, missing_in, stage)


def rules_of(*modules: str) -> tuple[Rule[Any], ...]:
    """Return the rules of these modules of `checks`, in the order of the module."""
    loaded = [import_module(f"gptailor.checks.{name}") for name in modules]
    return tuple(
        value
        for module in loaded
        for value in vars(module).values()
        if isinstance(value, Rule) and value.check.__module__ == module.__name__
    )


def ascending(
    what: str, ends: tuple[int | float, int | float], at: Place, alone: str, step: str = ""
) -> Iterator[Fault]:
    """Yield a fault (P504) for a range that descends or has equal ends."""
    low, high = ends
    if low > high:
        help_ = f"write {high!r}..{low!r}{step}"
        yield Fault("P504", f"the {what} {low!r}..{high!r} descends", at, help_)
    elif low == high:
        yield Fault("P504", f"the {what} {low!r}..{high!r} {alone}", at, f"write {low!r}")


def repeats(keys: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    """Yield the index of each repeated key, and the index of its first occurrence."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        if (earlier := first.setdefault(key, i)) != i:
            yield i, earlier


def run_rules(
    rules: Iterable[Rule[_Subject]], subject: _Subject, stage: int = 3
) -> Iterator[Fault]:
    """Yield the faults of a subject, rule by rule of a stage."""
    for each in rules:
        if each.stage == stage:
            yield from each.check(subject)
