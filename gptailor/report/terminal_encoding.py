"""What is printed on a terminal that lacks some characters, as one of ISO 8859-1 or ASCII does."""

from typing import Final

INSTEAD: Final = {
    **dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)),  # eighths
    **dict(zip("²³⁴⁵⁶⁷⁸⁹⁺", "23456789+", strict=True)),
    "◆": "*",
    "◧": "/",
    "○": "~",
    "·": ".",
    "─": "-",
    "→": "->",
    "…": "...",
    "±": "+-",
    "\u00d7": "x",
    "\u2212": "-",
    "≤": "<=",
    "≥": ">=",
}
"""A map's symbols have one character each, so that columns stay where they are."""


def in_encoding(text: str, encoding: str | None) -> str:
    """The text with what an encoding has instead of what it lacks; `?` where it has nothing.

    All of a kind are replaced, so that what is alike looks alike.
    """
    known = encoding or "utf-8"
    try:
        text.encode(known, "surrogateescape")
    except (UnicodeEncodeError, LookupError):
        text = "".join(INSTEAD.get(one, one) for one in text)
        known = known if _exists(known) else "ascii"
        return text.encode(known, "replace").decode(known)
    return text


def _exists(encoding: str) -> bool:
    try:
        "".encode(encoding)
    except LookupError:
        return False
    return True
