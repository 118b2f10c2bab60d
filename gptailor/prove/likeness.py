"""What tells layers apart that a configuration says the same of: their modules' own attributes.

A layer that computes by its number has the number, or something made of it, in an attribute. The
number alone is let be: caches go by it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

Signature = dict[tuple[str, str], Any]
"""The plain attributes of a layer's modules, and their tensors' shapes, by module and name."""

_PLAIN = (str, int, float, bool, type(None))
_NUMBER = re.compile(r"i|.*(idx|index|number|layer|block|depth).*")
"""Names of attributes that may be a layer's number."""
_ITS_NUMBER = re.compile(r"layer_(idx|id|number|index)")
"""Names of attributes that are one, or two of them where a layer has two attentions."""


def signature(layer: nn.Module) -> Signature:
    """What a layer is made of, but for its values."""
    found: Signature = {}
    for path, module in layer.named_modules():
        found[path, "class"] = type(module).__name__
        for name, value in vars(module).items():
            if not (name.startswith("_") or _ITS_NUMBER.fullmatch(name)) and _is_plain(value):
                found[path, name] = value
        for name, tensor in module.named_parameters(recurse=False):
            found[path, name] = tuple(tensor.shape)
        for name, buffer in module.named_buffers(recurse=False):
            found[path, name] = tuple(buffer.shape)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(each, _PLAIN) for each in value)
    return isinstance(value, _PLAIN)


def shared_keys(layers: Sequence[Signature]) -> set[tuple[str, str]]:
    """The attributes that all layers have alike."""
    first = layers[0]
    return {key for key in first if all(key in one and one[key] == first[key] for one in layers)}


def unnumbered(layers: Sequence[nn.Module]) -> list[Signature]:
    """The layers' signatures without attributes that are each layer's own number."""
    found = [signature(layer) for layer in layers]
    named = {key for one in found for key in one if _NUMBER.fullmatch(key[1])}
    numbers = {key for key in named if all(one.get(key, i) == i for i, one in enumerate(found))}
    return [{k: v for k, v in one.items() if k not in numbers} for one in found]


def differing(a: Signature, b: Signature) -> str | None:
    """The first attribute in which two signatures differ, by name; None if they are equal."""
    for key in sorted(a.keys() | b.keys()):
        if key not in a or key not in b or a[key] != b[key]:
            return ".".join(filter(None, key)).removesuffix(".class")
    return None


def unlike(layers: Sequence[nn.Module], kinds: Sequence[str]) -> str | None:
    """Two layers that should be alike by their kinds, and what tells them apart; else None."""
    first: dict[str, tuple[int, Signature]] = {}
    for i, one in enumerate(unnumbered(layers)):
        other, known = first.setdefault(kinds[i], (i, one))
        if (what := differing(known, one)) is not None:
            return f"layers {other} and {i} differ ('{what}')"
    return None


def pattern(layers: Sequence[nn.Module]) -> Sequence[int]:
    """A number for each layer; equal ones where layers are alike."""
    seen: dict[str, int] = {}
    shown = [repr(sorted(one.items())) for one in unnumbered(layers)]
    return [seen.setdefault(text, len(seen)) for text in shown]


Kinds = Mapping[str, Sequence[Any]]
"""What each key says of each layer."""


def kinds_of(said: Kinds, count: int) -> list[str]:
    """What is said of each layer, as one text."""
    return [repr([said[key][i] for key in sorted(said)]) for i in range(count)]
