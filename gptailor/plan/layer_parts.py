"""The parts of a layer, their order from coarse to fine, and the tensors that each holds."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from gptailor.plan.faults import listed, nearest

Branch: TypeAlias = Literal["attn", "mlp"]
"""A residual branch of a layer, with the norms that belong to it."""

BRANCHES: tuple[Branch, ...] = ("attn", "mlp")

NORMS = "norms"
"""All norms of a layer over the hidden state, whichever branch they belong to."""

ROLES: Mapping[Branch, tuple[str, ...]] = {
    "attn": ("q", "k", "v", "o", "qkv"),
    "mlp": ("gate", "up", "down", "gate_up", "router"),
}
"""The projections of each branch."""

PROJECTIONS = tuple(f"{branch}.{role}" for branch in BRANCHES for role in ROLES[branch])

NAMED_PARTS = (*BRANCHES, NORMS, *PROJECTIONS)
"""All parts that have a name, coarse ones first."""

_NAMED = "|".join(re.escape(name) for name in NAMED_PARTS)

Part: TypeAlias = Annotated[str, Field(pattern=rf'^(?:{_NAMED}|"[^"\r\n]+")$')]
"""A part by its name, or a pattern in its quotes: `attn`, `mlp.down`, `"*.q_proj.*"`."""


def is_pattern(part: str | None) -> bool:
    """Return whether a part is a pattern on tensors' names."""
    return part is not None and part.startswith('"')


def unknown_part(part: str) -> tuple[str, str] | None:
    """Return the message and the help for an unknown part; None for a known one."""
    if part == '""':
        return "an empty pattern matches no tensor", "remove it, or write a pattern"
    if is_pattern(part) or part in NAMED_PARTS:
        return None
    branch = next((name for name in BRANCHES if part.startswith(f"{name}.")), None)
    if branch is None:
        parts = f"{listed(NAMED_PARTS[:3])}, projections such as 'attn.q', and patterns in quotes"
        help_ = nearest(part, NAMED_PARTS) or f"the parts are {parts}"
    else:
        named = [f"{branch}.{role}" for role in ROLES[branch]]
        help_ = f"the parts of '{branch}' are {listed(named)}"
    return f"a layer has no part '{part}'", help_


def rank(part: str | None) -> int:
    """Return how fine a part is: the whole layer 0, a branch 1, norms and projections 2, a pattern
    3.

    A finer part's recipe wins over a coarser one's.
    """
    if part is None:
        return 0
    if is_pattern(part):
        return 3
    return 1 if part in BRANCHES else 2


def may_overlap(part: str | None, other: str | None) -> bool:
    """Return whether some tensor may lie in both parts."""
    if part == other or rank(part) in {0, 3} or rank(other) in {0, 3}:
        return True
    coarse, fine = sorted((part or "", other or ""), key=rank)
    finer = rank(coarse) < rank(fine)
    return finer and (fine == NORMS or fine.startswith(f"{coarse}."))


@lru_cache(maxsize=1024)
def _matcher(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern[1:-1]).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text, re.DOTALL)


def holds(part: str | None, branch: Branch, role: str | None, name: str) -> bool:
    """Return whether a part holds the tensor of a branch that is called `name` within its layer.

    `role` is `norms` or a projection's, where the tensor has one. In a pattern `*` stands for any
    characters, dots too, and `?` for one.
    """
    if part is None or part in {branch, role}:
        return True
    return is_pattern(part) and _matcher(part).fullmatch(name) is not None
