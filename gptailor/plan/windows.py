"""Windows: neighbours in a list of positions that leave or run again."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gptailor.plan.numbers import Count, count_ends
from gptailor.plan.plan import Repeat, RepeatWindow

Window = tuple[int, int]
"""The first and the last position, both included."""


def runs(among: Sequence[int]) -> list[Window]:
    """Return the stretches of a list in which each number is one above the number before it."""
    breaks = [n for n, (a, b) in enumerate(pairwise(among), 1) if b != a + 1]
    borders = zip([0, *breaks], [*breaks, len(among)], strict=True)
    return [(among[first], among[last - 1]) for first, last in borders if first < last]


def windows_of(count: Count, among: Sequence[int]) -> Iterator[Window]:
    """Yield all windows of `count` layers, the short ones first, from the front.

    No window spans a hole.
    """
    stretches = runs(among)
    low, high = count_ends(count)
    for length in range(max(low, 1), min(high, len(among)) + 1):
        for first, last in stretches:
            yield from ((at, at + length - 1) for at in range(first, last - length + 2))


def window_count(count: Count, among: Sequence[int]) -> int:
    """Return how many windows `windows_of` yields, without making them."""
    low, high = count_ends(count)
    return sum(
        last - first + 2 - length  # the places of this length
        for first, last in runs(among)
        for length in range(max(low, 1), min(high, last - first + 1) + 1)
    )


def stretch_of(repeat: Repeat | RepeatWindow) -> Window:
    """Return the first and the last position that may run again."""
    if isinstance(repeat, Repeat):
        return repeat.first, repeat.last
    return min(repeat.among, default=0), max(repeat.among, default=0)


def window_words(window: Window) -> str:
    """Return `L5..L11`, or `L5`."""
    first, last = window
    return f"L{first}" if first == last else f"L{first}..L{last}"
