"""Numbers in words: scores with errors, shares, counts, bytes and durations."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

_COUNTED = 1000
"""The least whole number that is a count if it has no error; counts show all digits."""
_LARGE = 10**6
"""The least number that is rounded to a whole one, as the share of a count is."""

_ROUNDED = 5e-9
"""The least error that is more than 0 in eight decimals."""


def with_error(value: float, error: float) -> str:
    """Return `3.012 ± 0.041`: two digits of the error, and as many decimals of the value."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error < _ROUNDED:
        # A size with exact digits, or a share of one.
        counted = value >= _LARGE or (value >= 1 and value == int(value))
        return f"{value:,.0f}" if counted else f"{round(value, 8) + 0.0:.4g} ± 0"
    places = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def shown_number(value: float | None, error: float | None = None) -> str:
    """Return `3.785 ± 0.041`, or `?` for an unknown value."""
    if value is None:
        return "?"
    counted = abs(value) >= _COUNTED and float(value).is_integer()  # parameters, bytes
    if not error and math.isfinite(value) and (counted or abs(value) >= _LARGE):
        return f"{value:,.0f}"
    if error is None:
        return f"{value:.4g}"
    return f"{round(value, 8) + 0.0:.4g} ± {round(error, 8):.2g}"


def percent(share: float | None) -> str:
    """Return `78.3 %`, or `?` for an unknown share."""
    return "?" if share is None else f"{100 * share:.1f} %"


def millions(count: int) -> str:
    """Return a number of parameters: `134.5 M`, `7.24 B`."""
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


def short_count(count: int) -> str:
    """Return `134.5 M`; below a million `131,072`."""
    return millions(count) if count >= 10**6 else f"{count:,}"


def bytes_in_words(size: int | None, unit: str = "bytes") -> str:
    """Return `269.0 MB`, `12 bytes`, or `?` for an unknown size."""
    if size is None:
        return "?"
    for scale, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= scale:
            return f"{size / scale:.1f} {name}"
    return f"{size} {unit}"


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTE_UNITS = _UNITS | {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def bytes_from_words(text: str) -> int:
    """Return a number of bytes such as `5GB`, `500MB` or `2GiB`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.IGNORECASE)
    unit = _BYTE_UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise ValueError(f"expected a size such as 5GB or 500MiB, got '{text}'")
    return size


_R = TypeVar("_R")


def argument(name: str, read: Callable[..., _R], *words: object) -> _R:
    """Return an argument that is read from words. Raises ValueError, which names it."""
    try:
        return read(*words)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from None


def byte_count(size: int | str | None) -> int | None:
    """Return the bytes of the argument `memory`, maybe a text such as `2GB`; None stays None.

    Raises ValueError for another text, and for a number below 1.
    """
    return size if size is None else argument("memory", bytes_from_words, str(size))


def count_from_words(text: str) -> int:
    """Return a number of parameters such as `110M`, `1.5B` or `1,500,000`. Raises ValueError."""
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbgt]?)", plain, re.IGNORECASE)
    units = _UNITS | {"B": 10**9}
    count = round(float(match[1]) * units[match[2].upper()]) if match else 0
    if count <= 0:
        raise ValueError(f"expected a number of parameters such as 110M or 1.5B, got '{text}'")
    return count


def loss_from_words(text: str) -> tuple[str, float]:
    """Return the unit and the number of a loss: `2%` (`share`) or `0.05` (`nats`).

    Raises ValueError.
    """
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(%?)", text)
    if match is None:
        raise ValueError(f"expected a loss such as 2% or 0.05, got '{text}'")
    return ("share", float(match[1]) / 100) if match[2] else ("nats", float(match[1]))


def speed_in_words(speed: float | None, base: float | None = None) -> str:
    """Return tokens a second with the ratio to the base's, `930 (×1.15)`, or `?`."""
    if speed is None:
        return "?"
    number = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
    return number if base is None else f"{number} (×{speed / base:.2f})"


def duration(seconds: float) -> str:
    """Return `95 s`, `12 min`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def clock(seconds: float) -> str:
    """Return `1:02:03`, `2:03`."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"
