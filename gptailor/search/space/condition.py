"""When a gene says anything, as data: clauses of literals, one of which holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from gptailor.search.space.table import FALSE, TRUE, ConditionRows, LiteralLayout


@dataclass(frozen=True, slots=True)
class Literal:
    """One truth: a bit that is `value`, a pick that is `value`, or `kind` of that number."""

    kind: str  # "bit", "option", "several", "room" or "wide"
    number: int
    value: int = 1


Clause: TypeAlias = frozenset[Literal]
Condition: TypeAlias = frozenset[Clause]

ALWAYS: Condition = frozenset([frozenset()])
NEVER: Condition = frozenset()


def bit(number: int, on: bool = True) -> Condition:
    """That bit is on, or off."""
    return frozenset([frozenset([Literal("bit", number, int(on))])])


def option(number: int, value: int) -> Condition:
    """That pick is that option."""
    return frozenset([frozenset([Literal("option", number, value)])])


def several(subset: int) -> Condition:
    """Two or more members of that subset are chosen."""
    return frozenset([frozenset([Literal("several", subset)])])


def room(item: int) -> Condition:
    """There is room for that item of a stack."""
    return frozenset([frozenset([Literal("room", item)])])


def every(*conditions: Condition) -> Condition:
    """All of them hold."""
    found: Condition = ALWAYS
    for one in conditions:
        joined = (a | b for a in found for b in one)
        found = _least(clause for clause in joined if not _contradicts(clause))
    return found


def some(conditions: Iterable[Condition]) -> Condition:
    """One of them holds."""
    return _least(clause for one in conditions for clause in one)


def _contradicts(clause: Clause) -> bool:
    seen: dict[tuple[str, int], int] = {}
    return any(seen.setdefault((one.kind, one.number), one.value) != one.value for one in clause)


def _least(clauses: Iterable[Clause]) -> Condition:
    """Without clauses that ask for more than another."""
    found = set(clauses)
    return ALWAYS if frozenset() in found else frozenset(found)


MANY = 4
"""Rows of more clauses, or with more literals in one, are wide."""


class Conditions:
    """Conditions as the rows of a table; equal wide ones are made once."""

    def __init__(self, layout: LiteralLayout, options: list[int]) -> None:
        self.layout = layout
        self.offsets = np.cumsum([0, *options])
        self._wide: dict[Condition, int] = {}
        self._rest: list[Condition] = []

    def add(self, condition: Condition) -> None:
        """One row more."""
        if len(condition) > MANY or max(map(len, condition), default=0) > MANY:
            number = self._wide.setdefault(condition, len(self._wide))
            condition = frozenset([frozenset([Literal("wide", number)])])
        self._rest.append(condition)

    @property
    def wide(self) -> ConditionRows:
        """The wide ones, which are literals for the rest."""
        return self._rows(list(self._wide))

    @property
    def rest(self) -> ConditionRows:
        """All that were added, in order."""
        return self._rows(self._rest)

    def _rows(self, conditions: list[Condition]) -> ConditionRows:
        numbers: dict[Clause, int] = {frozenset([Literal("false", 0)]): 0}
        rows = [[numbers.setdefault(clause, len(numbers)) for clause in sorted(one, key=_order)]
                for one in conditions]  # fmt: skip
        clauses = [[self._place(one) for one in sorted(clause, key=repr)] for clause in numbers]
        return ConditionRows(_padded(clauses, TRUE), _padded(rows, 0))

    def _place(self, one: Literal) -> int:
        at = self.layout
        if one.kind == "bit":
            return (at.bits if one.value else at.negations) + one.number
        if one.kind == "option":
            return at.options + int(self.offsets[one.number]) + one.value
        start = {"several": at.several, "room": at.room, "wide": at.wide, "false": FALSE}
        return start[one.kind] + one.number


def _order(clause: Clause) -> list[str]:
    return sorted(map(repr, clause))


def _padded(rows: list[list[int]], by: int) -> np.ndarray:
    width = max(1, *map(len, rows)) if rows else 1
    return np.array([[*row, *[by] * (width - len(row))] for row in rows], np.int32).reshape(
        len(rows), width
    )
