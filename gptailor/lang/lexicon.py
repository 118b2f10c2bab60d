"""The words and signs of the grammar, by the names of their terminals."""

import functools
from collections.abc import Mapping

from gptailor.lang.parse import parser


@functools.cache
def spelled() -> Mapping[str, str]:
    """Return the word or the sign of each terminal of the grammar that stands for one text."""
    return {t.name: t.pattern.value for t in parser().terminals if t.pattern.type == "str"}
