"""The map of repeated blocks: the first layer by the last one, as a picture in SVG."""

from collections.abc import Iterator, Sequence
from statistics import median
from xml.sax.saxutils import escape

from gptailor.plan.windows import window_words
from gptailor.reporting.summary import BestBlocks, MappedBlock


def block_lines(scan: BestBlocks | None) -> list[str]:
    """Return the text of a scan: how much was scanned, the best blocks, the map's file."""
    if scan is None:
        return []
    head = (
        f"repeated blocks: {scan.scanned} of {scan.of} scanned on {scan.samples} "
        f"samples, {scan.better} better than the base by {scan.measure}"
    )
    rows = [f"  {_words(block)}" for block in scan.blocks]
    return [head, *rows, f"  the map: {scan.map}"]


_CELL = 18
_LEFT, _TOP = 84, 92
_BETTER, _WORSE, _EVEN = (33, 102, 172), (178, 24, 43), (247, 247, 247)
_STEPS = 5


def block_map(blocks: Sequence[MappedBlock], measure: str, samples: int) -> str:
    """Return the picture: a row for each first layer, a column for each last one.

    Blue is better than the base. Colours reach up to the best block's change, or up to the median
    of all changes if that is more. So all blocks that are much worse have the last colour. Each
    cell shows its number under a pointer.
    """
    reach = max([0.0, *(-block.change for block in blocks)])
    reach = max(reach, median(abs(block.change) for block in blocks), 1e-12)
    rows = range(min(block.first for block in blocks), max(block.first for block in blocks) + 1)
    columns = range(min(block.last for block in blocks), max(block.last for block in blocks) + 1)
    width = max(_LEFT + _CELL * len(columns) + 24, 430)
    height = _TOP + _CELL * len(rows) + 66
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="12" y="20" font-size="13" font-weight="bold">Repeated blocks</text>',
        f'<text x="12" y="37">{escape(measure)}, {samples} samples, beside the base</text>',
        f'<text x="12" y="53">best: {_words(min(blocks, key=lambda block: block.change))}</text>',
        f'<text x="{_LEFT}" y="{_TOP - 20}">last layer</text>',
        f'<text x="12" y="{_TOP - 6}">first layer</text>',
        *_axes(rows, columns),
        *(_cell(block, rows, columns, reach) for block in blocks),
        *_best(blocks, rows, columns),
        *_legend(height - 40, reach),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _axes(rows: range, columns: range) -> Iterator[str]:
    every = 1 if len(columns) <= 16 else 2
    for number in columns[::every]:
        x = _LEFT + _CELL * (number - columns[0]) + _CELL / 2
        yield f'<text x="{x:g}" y="{_TOP - 6}" text-anchor="middle">{number}</text>'
    for number in rows:
        y = _TOP + _CELL * (number - rows[0]) + _CELL / 2 + 4
        yield f'<text x="{_LEFT - 6}" y="{y:g}" text-anchor="end">{number}</text>'


def _place(block: MappedBlock, rows: range, columns: range) -> tuple[int, int]:
    x = _LEFT + _CELL * (block.last - columns[0])
    return x, _TOP + _CELL * (block.first - rows[0])


def _cell(block: MappedBlock, rows: range, columns: range, reach: float) -> str:
    x, y = _place(block, rows, columns)
    return (
        f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
        f'fill="{_colour(block.change / reach)}"><title>{_words(block)}</title></rect>'
    )


def _words(block: MappedBlock) -> str:
    return f"{window_words((block.first, block.last))}: {block.value:.4g} ({block.change:+.2%})"


def _best(blocks: Sequence[MappedBlock], rows: range, columns: range) -> Iterator[str]:
    """Yield a frame round the best block."""
    x, y = _place(min(blocks, key=lambda block: block.change), rows, columns)
    side = _CELL + 1
    yield (
        f'<rect x="{x - 1}" y="{y - 1}" width="{side}" height="{side}" fill="none" '
        'stroke="black" stroke-width="2"/>'
    )


def _legend(y: int, reach: float) -> Iterator[str]:
    for step in range(-_STEPS, _STEPS + 1):
        x = _LEFT + 16 * (step + _STEPS)
        fill = _colour(step / _STEPS)
        yield f'<rect x="{x}" y="{y}" width="16" height="10" fill="{fill}"/>'
    middle, end = _LEFT + 8 * (2 * _STEPS + 1), _LEFT + 16 * (2 * _STEPS + 1)
    yield f'<text x="{_LEFT}" y="{y + 24}">{-reach:+.2%}, better</text>'
    yield f'<text x="{middle + 30}" y="{y + 24}">0</text>'
    yield f'<text x="{end}" y="{y + 24}">{reach:+.2%} or more</text>'


def _colour(share: float) -> str:
    """Return the colour of a change: -1 is the best, 0 the base, 1 the worst."""
    end = _BETTER if share < 0 else _WORSE
    way = min(abs(share), 1.0) if share == share else 1.0  # noqa: PLR0124 (no number)
    mixed = (round(a + (b - a) * way) for a, b in zip(_EVEN, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
