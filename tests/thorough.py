"""How much is tried: a part of what could be, or all with GPTAILOR_THOROUGH (`make thorough`)."""

import os
from collections.abc import Callable, Container, Hashable, Iterable
from typing import TypeVar

Case = TypeVar("Case")

THOROUGH = "GPTAILOR_THOROUGH" in os.environ


def drawn(count: int) -> int:
    """How many examples Hypothesis draws of so many."""
    return count if THOROUGH else max(8, count // 3)


def some(cases: Iterable[Case]) -> list[Case]:
    """A quarter of the cases, spread over all: for what another test asks of each of them."""
    return list(cases) if THOROUGH else list(cases)[::4]


def one_of_each(
    cases: Iterable[Case], kind: Callable[[Case], Hashable], besides: Container[Case] = ()
) -> list[Case]:
    """Return the first case of each kind, and those `besides`, where code branches on kinds."""
    cases, kinds = list(cases), dict[Hashable, Case]()
    for case in cases:
        kinds.setdefault(kind(case), case)
    firsts = set(kinds.values())
    return cases if THOROUGH else [case for case in cases if case in firsts or case in besides]


def moments(count: int) -> list[int]:
    """Which of so many moments a run is disturbed at: the last ones are where names change."""
    last = range(max(0, count - 12), count + 1)
    return list(range(count + 1)) if THOROUGH else sorted({*range(0, count, 4), *last})
