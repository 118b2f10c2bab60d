"""Tables of an evaluation: scores beside the base's, sizes and speeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

_SCORE_INDENT = "  "
GAP = "  "
_LEAST_COLUMNS = 8
"""Columns of a target's name, at least."""


@final
@dataclass(frozen=True)
class Size:
    """A target's sizes, and tokens a second with the ratio to the base's; None is unknown."""

    target: str
    layers: int
    parameters: int | None
    cache: int | None
    prefill: tuple[float, float | None] | None
    decoding: tuple[float, float | None] | None


def sizes(rows: Sequence[Size], width: int) -> Iterator[str]:
    """A line for each target: layers, parameters, cache, speeds where there are any."""
    fast = any(row.prefill or row.decoding for row in rows)
    heads = ["layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] if fast else [])]
    bodies = [_size(row)[: len(heads)] for row in rows]
    columns = [max(map(len, column)) for column in zip(heads, *bodies, strict=True)]
    room = width - len(_SCORE_INDENT) - sum(columns) - len(GAP) * len(columns)
    wide = name_width([row.target for row in rows], room)
    for name, body in [
        ("", heads),
        *((row.target, b) for row, b in zip(rows, bodies, strict=True)),
    ]:
        cells = GAP.join(f"{cell:>{size}}" for cell, size in zip(body, columns, strict=True))
        yield f"{_SCORE_INDENT}{shortened(name, wide):<{wide}}{GAP}{cells}"


def shortened(text: str, width: int, *, end: bool = False) -> str:
    """The text in so many columns: without its beginning, which paths share, or without its end."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…" if end else f"…{text[1 - width :]}"


def name_width(names: Sequence[str], room: int) -> int:
    """The columns that names take, if there is so much room."""
    return max(_LEAST_COLUMNS, min(room, max(map(len, names), default=0)))


def with_error(value: float, error: float) -> str:
    """`3.012 ± 0.041`: the error with two digits, and the value as far as it is sure."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error <= 0:
        counted = value >= 1 and value == int(value)  # a size, in which each digit counts
        return f"{value:,.0f}" if counted else f"{value:.4g} ± 0"
    places = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def _size(row: Size) -> list[str]:
    return [
        str(row.layers),
        "?" if row.parameters is None else _counted(row.parameters),
        "?" if row.cache is None else _bytes(row.cache),
        _speed(row.prefill),
        _speed(row.decoding),
    ]


def _speed(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "?"
    speed, ratio = found
    number = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
    return number if ratio is None else f"{number} (×{ratio:.2f})"


def _counted(count: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.{2 if unit == 10**9 else 1}f} {name}"
    return f"{count:,}"


def _bytes(size: int) -> str:
    return f"{size / 1000:.1f} kB" if size >= 1000 else f"{size} B"


def beside_base(direction: str, unit: str, share: float | None, lost: float | None) -> str:
    """`78.4 % of the base` of what is counted, `0.803 nats lost` of a loss: that has no share."""
    if direction == "maximize" and unit in ("", "accuracy"):
        return "" if share is None else f"{100 * share:.1f} % of the base"
    if lost is None:
        return ""
    size = f"{abs(lost):.3g}" if abs(lost) < 1 else f"{abs(lost):.4g}"
    return f"{size} {unit} {'won' if lost < 0 else 'lost'}".replace("  ", " ")


_COUNTED = 1000
"""From here on a whole number without an error is a count, which is shown whole."""


def shown_number(value: float | None, error: float | None = None) -> str:
    """`3.785 ± 0.041`; `?` for what is unknown."""
    if value is None:
        return "?"
    if not error and abs(value) >= _COUNTED and float(value).is_integer():
        return f"{value:,.0f}"  # a count: parameters, bytes
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def percent(share: float | None) -> str:
    """`78.3 %`."""
    return "?" if share is None else f"{100 * share:.1f} %"


def bytes_in_words(size: int) -> str:
    """A number of bytes: `269.0 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
