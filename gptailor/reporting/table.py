"""Tables for a terminal: names on the left, columns of numbers on the right."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from gptailor.reporting.terminal_encoding import in_encoding

_INDENT = "  "
_GAP = 2
_NAME = 8
"""The least width of the names."""
_LEAST = 12
"""The least width of a shortened name, or a fifth of the table if that is more."""


def table_lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    encoding: str | None = None,
    *,
    in_a_line: bool = False,
) -> Iterator[str]:
    """Yield the lines of a table in `width` columns; a row begins with its name.

    Cells are measured as a terminal of this `encoding` shows them; None is UTF-8. Long names take
    several lines, or are shortened to one if each row is `in_a_line`. Columns of numbers that still
    have no room follow in further blocks, with the names again. A block without any head has no
    line for it.
    """
    lines = [[in_encoding(cell, encoding) for cell in row] for row in (head, *rows)]
    cut = in_encoding("…", encoding)
    sizes = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    longest, numbers = max(_NAME, sizes[0]), sizes[1:]
    room = width - len(_INDENT)
    name_room = room - sum(numbers) - _GAP * len(numbers)
    enough = name_room >= min(longest, max(_LEAST, width // 5))
    name = min(longest, name_room if enough else max(_LEAST, width // 3))
    for block in _blocks(numbers, room - name):
        body = [
            [name_line, *((row[i] if last else "") for i in block)]
            for first, *row in lines
            for last, name_line in (
                [(True, textwrap.shorten(first, name, placeholder=f" {cut}"))]
                if in_a_line
                else _name_lines(first, name, cut)
            )
        ]
        yield from _drawn(body if any(body[0]) else body[1:], name)


def _name_lines(text: str, width: int, cut: str) -> Iterator[tuple[bool, str]]:
    """Yield the lines of a name in `width` columns, and whether each is the last one.

    Lines break between words. A word that is longer than a line is shortened.
    """
    lines = [""]
    for word in (shortened(word, width, cut) for word in text.split(" ")):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    for number, line in enumerate(lines, 1):
        yield number == len(lines), line


def _blocks(sizes: Sequence[int], room: int) -> Iterator[Sequence[int]]:
    """Yield the numbers of columns that have room beside each other, at least one at a time."""
    block: list[int] = []
    used = 0
    for number, size in enumerate(sizes):
        if block and used + _GAP + size > room:
            yield block
            block, used = [], 0
        block.append(number)
        used += _GAP + size
    yield block


def _drawn(body: Sequence[Sequence[str]], name: int) -> Iterator[str]:
    sizes = [max(map(cell_len, column)) for column in [*zip(*body, strict=True)][1:]]
    for first, *row in body:
        cells = [
            " " * (size - cell_len(cell)) + cell for size, cell in zip(sizes, row, strict=True)
        ]
        yield f"{_INDENT}{(' ' * _GAP).join([set_cell_size(first, name), *cells])}".rstrip()


def shortened(text: str, width: int, cut: str = "…") -> str:
    """Return the text in `width` columns, without its middle: names begin and end alike."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if cell_len(text) <= width:
        return text
    room = width - len(cut)
    tail = room * 3 // 5  # the end of a path tells more than its beginning
    return f"{set_cell_size(text, room - tail)}{cut}{set_cell_size(text[::-1], tail)[::-1]}"
