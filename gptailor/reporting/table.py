"""Tables for a terminal: names on the left, columns of numbers on the right."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from gptailor.reporting.terminal_encoding import in_encoding, wrapped

_INDENT = "  "
_GAP = 2


def row_numbers(names: Sequence[str]) -> list[str]:
    """Return the numbers that stand for names in a table, as texts: from 1 on."""
    return [str(number) for number in range(1, len(names) + 1)]


def has_room(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether all columns of a table fit next to its names in `width` columns."""
    sizes = _sizes([head, *rows])
    return len(_INDENT) + sum(sizes) + _GAP * (len(sizes) - 1) <= width


def legend_lines(
    labels: Sequence[str], names: Sequence[str], width: int, encoding: str | None = None
) -> Iterator[str]:
    """Yield a line with the name of each label of a table's rows, then an empty line.

    A name that is its label has no line. A name that begins with its label has a line for the rest.
    """
    longest = max(map(cell_len, labels), default=0)
    for label, name in zip(labels, names, strict=True):
        first = f"{_INDENT}{set_cell_size(label, longest)}{' ' * _GAP}"
        rest = "" if name == label else name.removeprefix(f"{label}: ")
        yield from wrapped(in_encoding(_printable(rest), encoding), width, first, " " * len(first))
    yield ""


def table_lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    encoding: str | None = None,
    labels: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the lines of a table in `width` columns; a row begins with its name.

    Cells are measured as a terminal of this `encoding` shows them; None is UTF-8. If the names have
    no room next to all columns, a legend gives them above the table, and rows begin with `labels`,
    by default with numbers. Columns that still have no room follow in further blocks. A block
    without any head has no line for it.
    """
    names, labels = [row[0] for row in rows], labels or row_numbers([row[0] for row in rows])
    longer = max(map(cell_len, names), default=0) > max(map(cell_len, labels), default=0)
    if longer and not has_room(head, rows, width):
        yield from legend_lines(labels, names, width, encoding)
        rows = [[label, *row[1:]] for label, row in zip(labels, rows, strict=True)]
    lines = [[in_encoding(_printable(cell), encoding) for cell in row] for row in (head, *rows)]
    name, *numbers = _sizes(lines)
    for block in _blocks(numbers, width - len(_INDENT) - name):
        body = [[first, *(row[i] for i in block)] for first, *row in lines]
        yield from _drawn(body if any(body[0]) else body[1:], name)


def _sizes(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column."""
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _blocks(sizes: Sequence[int], room: int) -> Iterator[Sequence[int]]:
    """Yield the numbers of columns that have room next to each other, at least one at a time."""
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
    _, *sizes = _sizes(body)
    for first, *row in body:
        cells = [
            " " * (size - cell_len(cell)) + cell for size, cell in zip(sizes, row, strict=True)
        ]
        yield f"{_INDENT}{(' ' * _GAP).join([set_cell_size(first, name), *cells])}".rstrip()


def shortened(text: str, width: int, cut: str = "…") -> str:
    """Return the text in `width` columns, without its middle: names begin and end alike."""
    text = _printable(text)
    if cell_len(text) <= width:
        return text
    room = width - len(cut)
    tail = room * 3 // 5  # the end of a path tells more than its beginning
    return f"{set_cell_size(text, room - tail)}{cut}{set_cell_size(text[::-1], tail)[::-1]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
