"""The predecessor's depth-wise integration as a stack: an ordered subset of layers at a place."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

from gptailor.convert.note import ConversionError, Note
from gptailor.convert.paper.keys import family_of, numbered
from gptailor.plan.plan import Item, LayerOf, Plan, Stack, Take

_BLOCK = r"layer_(\d+)_block_(\d+)_selection"
_SCALE = r"scale_(\d+)"
_MULTIPLIED = (
    "the hidden state after L{} is multiplied by {!r} there; a stack has no scale, so that the "
    "plan does not say this"
)
_EMPTY = "L{} has no layer, and its scale of {!r} nothing to multiply; the plan has neither"
_ORDER = "the order {} of {} models is taken as the one of that number in lexicographic order"
_ENDS = "the file doesn't say whose embedding, norm and head these are: they are the base's"


def from_depth_wise(document: dict[str, Any], models: Sequence[str]) -> tuple[Plan, list[Note]]:
    """The plan of a depth-wise integration."""
    blocks = numbered(document, _BLOCK)
    layers = 1 + max(layer for layer, _ in blocks)
    count = 1 + max(block for _, block in blocks)
    if set(blocks) != {(n, k) for n in range(layers) for k in range(count)}:
        raise ConversionError(f"not every layer of {layers} has its {count} blocks")
    family, notes = family_of(layers, count, models)
    notes.append(Note("", _ENDS))
    orders = list(permutations(range(count)))
    items = []
    filled = set()
    for n in range(layers):
        chosen = [k for k in range(count) if _flag(document, blocks[n, k])]
        if len(chosen) > 1:
            order, more = _order(document, n, len(orders))
            notes += [Note(more, _ORDER.format(order, count))] if order else []
            chosen = [k for k in orders[order] if k in chosen]
        filled |= {n} if chosen else set()
        layer_of = [LayerOf(model=family.candidates[k], layer=n) for k in chosen]
        items += [Item(recipe=Take(take=layer)) for layer in layer_of]
    notes += _scales(document, filled)
    return Plan(models=family.models, stack=Stack(items=tuple(items))), notes


def _flag(document: dict[str, Any], key: str) -> bool:
    value = document[key]
    if str(value) not in ("0", "1"):
        raise ConversionError(f"this is {value!r}, and not 0 or 1", place=key)
    return str(value) == "1"


def _order(document: dict[str, Any], layer: int, count: int) -> tuple[int, str]:
    """The number of a permutation, and its key."""
    key = f"layer_{layer}_permutation_selection"
    value = str(document.get(key, "0"))
    if not value.isdecimal() or int(value) >= count:
        raise ConversionError(f"this is {value!r}, and not one of {count} orders", place=key)
    return int(value), key


def _scales(document: dict[str, Any], filled: set[int]) -> list[Note]:
    notes = []
    for (layer,), key in numbered(document, _SCALE).items():
        if document[key] != 1:
            message = _MULTIPLIED if layer in filled else _EMPTY
            notes.append(Note(key, message.format(layer, document[key])))
    return notes
