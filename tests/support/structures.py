"""Families that code treats alike: `structure` names the class of one."""

from collections.abc import Hashable

from gptailor.checkpoint.families import FAMILY_OF


def structure(family: str) -> Hashable:
    """Return what code branches on in a model type's family; names and numbers don't count."""
    its = FAMILY_OF[family]
    return (
        bool(its.rules),
        its.transposed,
        frozenset(its.folds.values()),
        its.refused.parts is None,
        its.refused.bridge is None,
        any("*" in name or "experts" in name for name in its.mlp_out),
        len(its.attn_out) > 1,
        len((*its.attn, *its.mlp)) > 4,
    )


def branch_structure(family: str) -> Hashable:
    """Return the same with the projections that a bridge changes."""
    return structure(family), FAMILY_OF[family].mlp_out
