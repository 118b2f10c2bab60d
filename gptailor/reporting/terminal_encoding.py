"""Prose in lines of a terminal, which may lack some characters, as with ISO 8859-1 or ASCII."""

import re
import textwrap
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
"""The substitutes. A map's symbol is replaced by one character, so that columns stay aligned."""


def in_encoding(text: str, encoding: str | None) -> str:
    """Return the text with substitutes for characters that an encoding lacks, or `?`.

    If one character is replaced, all that have a substitute are, so that symbols stay alike.
    """
    codec = encoding or "utf-8"
    try:
        text.encode(codec, "surrogateescape")
    except LookupError:
        return in_encoding(text, "ascii")
    except UnicodeEncodeError:
        text = "".join(INSTEAD.get(character, character) for character in text)
        return text.encode(codec, "replace").decode(codec)
    return text


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that control a terminal, or change the direction of a line."""


def escaped_control(text: str) -> str:
    """Return the text with `\\x1b` and the like in the place of control characters."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def wrapped(
    text: str, width: int, first: str = "", later: str = "", most: int | None = None
) -> list[str]:
    """Return the lines of a text in `width` columns; a line ends between two words.

    The line that begins with `first` is followed by lines that begin with `later`. If there are
    more lines than `most`, the last line ends in dots. A longer word has a line of its own.
    """
    return textwrap.wrap(
        text, max(20, width), initial_indent=first, subsequent_indent=later, max_lines=most,
        placeholder=" …", break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
