"""The words for highlighters and editors: the grammar's words, and the registries' names.

All of them are read off the grammar's parser and the registries, so new words need no change here.
"""

from collections.abc import Iterable, Mapping

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES
from gptailor.lang.parse import parser, spelled
from gptailor.lang.syntax_errors import beginning
from gptailor.plan.layer_parts import BRANCHES, NORMS, ROLES
from gptailor.plan.registry import DTYPES, METHODS, OBJECTIVES

_CHOICES = frozenset({"any", "maybe", "one", "tied"})
"""Words that leave something open, which have a colour of their own."""


def word_groups() -> Mapping[str, tuple[str, ...]]:
    """Return all words by their use, each group sorted; no word of the grammar is in two groups.

    `statement` words begin a statement or a line of a block, `choice` words leave something open,
    `within` are all others of the grammar. The other groups name what registries have, and the
    parts of a layer; `setting` are words that methods' parameters take.
    """
    grammar = set(_words(spelled().values()))
    first = {word for start in ("statement", "item", "wish") for word in beginning(parser(), start)}
    settings = {word for m in METHODS.values() for p in m.parameters for word in p.words}
    return {
        "statement": _words(first - _CHOICES),
        "choice": _words(grammar & _CHOICES),
        "within": _words(grammar - first - _CHOICES),
        "method": tuple(sorted(METHODS)),
        "function": ("curve",),
        "objective": tuple(sorted(OBJECTIVES.names())),
        "branch": BRANCHES,
        "norms": (NORMS,),
        "role": tuple(sorted({role for roles in ROLES.values() for role in roles})),
        "dtype": tuple(sorted(DTYPES)),
        "file type": tuple(sorted(map(str.lower, FILE_TYPES))),
        "setting": tuple(sorted(settings)),
    }


def _words(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are words and no signs, sorted."""
    return tuple(sorted(text for text in texts if text[:1].isalpha()))
