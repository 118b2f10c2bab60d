"""Tables of an evaluation: scores by objective, then sizes and speeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SCORE_INDENT = "  "
GAP = "  "
_LEAST_COLUMNS = 8
"""Columns of a target's name, at least."""


@dataclass(frozen=True)
class Mark:
    """A target's score by one objective, or why it has none; the share of the base's."""

    target: str
    value: float | None
    error: float = math.inf
    retained: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Size:
    """A target's sizes, and tokens a second with the ratio to the base's; None is unknown."""

    target: str
    layers: int
    parameters: int | None
    cache: int | None
    prefill: tuple[float, float | None] | None
    decoding: tuple[float, float | None] | None


def score_lines(heading: str, rows: Sequence[Mark], width: int) -> Iterator[str]:
    """An objective's heading, and a line for each target."""
    yield heading
    bodies = [_mark(row) for row in rows]
    scored = [body for body, row in zip(bodies, rows, strict=True) if row.value is not None]
    sizes = [max((len(body[i]) for body in scored), default=0) for i in range(2)]
    room = width - len(_SCORE_INDENT) - sum(sizes) - 2 * len(GAP)
    wide = _wide([row.target for row in rows], room)
    for row, (score, share) in zip(rows, bodies, strict=True):
        first = f"{_SCORE_INDENT}{shortened(row.target, wide):<{wide}}{GAP}"
        if row.value is None:
            yield first + shortened(f"failed: {row.failure}", max(20, width - len(first)), end=True)
        else:
            yield f"{first}{score:>{sizes[0]}}{GAP}{share:>{sizes[1]}}".rstrip()


def sizes(rows: Sequence[Size], width: int) -> Iterator[str]:
    """A line for each target: layers, parameters, cache, speeds where there are any."""
    fast = any(row.prefill or row.decoding for row in rows)
    heads = ["layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] if fast else [])]
    bodies = [_size(row)[: len(heads)] for row in rows]
    columns = [max(map(len, column)) for column in zip(heads, *bodies, strict=True)]
    room = width - len(_SCORE_INDENT) - sum(columns) - len(GAP) * len(columns)
    wide = _wide([row.target for row in rows], room)
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


def _wide(names: Sequence[str], room: int) -> int:
    return max(_LEAST_COLUMNS, min(room, max(map(len, names), default=0)))


def _mark(row: Mark) -> tuple[str, str]:
    if row.value is None:
        return "", ""
    share = "" if row.retained is None else f"{100 * row.retained:.1f} % of the base"
    return _with_error(row.value, row.error), share


def _with_error(value: float, error: float) -> str:
    """`3.012 ± 0.041`: the error with two digits, and the value as far as it is sure."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error <= 0:
        return f"{value:.4g} ± 0"
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
