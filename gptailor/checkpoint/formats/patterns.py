"""Regular expressions from files, and a check for those that could be matched for ever."""

import re

LONGEST_NAME = 300
"""Characters of a name of a module or a tensor that patterns are matched against."""

_MOST_STEPS = 10_000_000
_MOST_GROUPS = 4


def may_hang(pattern: str, length: int = LONGEST_NAME) -> bool:
    """Return whether matching may take too long: a repetition within another, or too many.

    `length` is that of the text that the pattern is matched against.
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL).replace("(?:", "(")
    repeats = len(re.findall(r"[*+?{]", bare))
    nested = ")*" in bare or ")+" in bare or "){" in bare
    return nested or bare.count("(") > _MOST_GROUPS or length**repeats > _MOST_STEPS
