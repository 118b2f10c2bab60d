"""What of a layer is made differently, as far as mergekit's filters have to tell it apart."""

from collections.abc import Mapping, Sequence

from gptailor.convert.note import ConversionError, dotted
from gptailor.plan.layers import PARTS, Slot
from gptailor.plan.parts import NORMS, Branch, is_pattern
from gptailor.plan.plan import Recipe

_NORM: Mapping[Branch, str] = {
    "attn": "input_layernorm.weight",
    "mlp": "post_attention_layernorm.weight",
}
_PROJECTIONS: Mapping[Branch, Mapping[str, str]] = {
    "attn": {f"attn.{role}": f"self_attn.{role}_proj.weight" for role in "qkvo"},
    "mlp": {f"mlp.{role}": f"mlp.{role}_proj.weight" for role in ("gate", "up", "down")},
}
"""Llama's tensors, which filters are written for."""

PieceRecipes = dict[str, Recipe]
"""What a layer's pieces are made of: `attn`, or `attn.projections` and `attn.norm`, and so on."""


def layer_pieces(slots: Sequence[Slot]) -> list[PieceRecipes]:
    """The pieces of each layer: the same in all layers, as few as tell apart what differs.

    Raises ConversionError for a part that Llama's layers haven't, or a pattern on other names.
    """
    for slot in slots:
        _refuse_unknown(slot)
    levels = {branch: max(_level(slot, branch) for slot in slots) for branch in PARTS}
    return [
        {key: recipe for branch in PARTS for key, recipe in _pieces(slot, branch, levels[branch])}
        for slot in slots
    ]


def _refuse_unknown(slot: Slot) -> None:
    known = {None, *PARTS, NORMS, *(name for of in _PROJECTIONS.values() for name in of)}
    for part, made in slot.made.items():
        if part in known:
            continue
        message = f"the part '{part}' is none of Llama's, which filters are written for"
        if is_pattern(part):
            message = f"the pattern {part} may fit other tensors in mergekit than here"
        raise ConversionError(message, place=dotted(made.at))


def _level(slot: Slot, branch: Branch) -> int:
    """Whether a branch is one piece (0), its norm another (1), or each projection one (2)."""
    inner = [recipe for _, recipe in _pieces(slot, branch, 2)]
    norm, *projections = inner[-1], *inner[:-1]
    if any(recipe != projections[0] for recipe in projections):
        return 2
    return int(norm != projections[0])


def _pieces(slot: Slot, branch: Branch, level: int) -> list[tuple[str, Recipe]]:
    """A branch's pieces; a filter on a projection comes before that on all the branch has left."""
    coarse = slot.part(branch).recipe
    if not slot.parted:
        first: list[tuple[str, Recipe]] = [(name, coarse) for name in _PROJECTIONS[branch]]
        norm = coarse
    else:
        first = [
            (name, slot.tensor(branch, name, rest).recipe)
            for name, rest in _PROJECTIONS[branch].items()
        ]
        norm = slot.tensor(branch, NORMS, _NORM[branch]).recipe
    if level == 0:
        return [(branch, norm)]
    left = [(f"{branch}.projections", coarse if level == 2 else first[0][1])]
    return [*(first if level == 2 else ()), *left, (f"{branch}.norm", norm)]
