"""Kinds of layers, before their family is known: by lists of a configuration, and by modules.

Layers with the same configuration are compared by their modules' own attributes. A layer that
computes by its number has the number, or a result of it, in an attribute. The number alone is
ignored: caches use it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from gptailor.plan.layer_parts import Branch

# ------------------------------------------------------------------------------------------ lists

_NO_LIST = re.compile(r".*_token_ids?|architectures|keys_to_ignore.*")
_OF_LAYERS = re.compile(r".*(layer|idx|indices|_ids|_blocks?).*")
_OF_MLP = re.compile(r"mlp|moe|expert|ffn|dense|sparse|feed")


def kind_of(
    config: Mapping[str, Any], key: str, count: int
) -> Literal["entries", "numbers"] | None:
    """Return the kind of a list with a value for each of `count` layers; None for other values."""
    value = config[key]
    if not isinstance(value, list | tuple) or not value or _NO_LIST.fullmatch(key):
        return None
    ascending = all(type(v) is int for v in value) and list(value) == sorted(set(value))
    if ascending and value[0] >= 0 and value[-1] < count and _OF_LAYERS.fullmatch(key):
        return "numbers"
    return "entries" if len(value) == count else None


def by_layer(config: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """Return the lists' values for each layer; for a list of numbers, whether it has the layer."""
    values = {}
    for key, value in config.items():
        match kind_of(config, key, count):
            case "entries":
                values[key] = list(value)
            case "numbers":
                values[key] = [i in value for i in range(count)]
    return values


def part_of(key: str) -> Branch:
    """Return the branch that a key is about, by its name."""
    return "mlp" if _OF_MLP.search(key) else "attn"


# ---------------------------------------------------------------------------------------- modules

Signature = dict[tuple[str, str], Any]
"""The plain attributes of a layer's modules, and their tensors' shapes, by module and name."""

_PLAIN = (str, int, float, bool, type(None))
_NUMBER = re.compile(r"i|.*(idx|index|number|layer|block|depth).*")
"""Names of attributes that may be a layer's number."""
_ITS_NUMBER = re.compile(r"layer_(idx|id|number|index)")
"""Names of attributes that are a layer's number; a layer may have two attentions."""


def signature(layer: nn.Module) -> Signature:
    """Return a layer's modules, attributes and shapes, without its values."""
    result: Signature = {}
    for path, module in layer.named_modules():
        result[path, "class"] = type(module).__name__
        for name, value in vars(module).items():
            if not (name.startswith("_") or _ITS_NUMBER.fullmatch(name)) and _is_plain(value):
                result[path, name] = value
        for name, tensor in module.named_parameters(recurse=False):
            result[path, name] = tuple(tensor.shape)
        for name, buffer in module.named_buffers(recurse=False):
            result[path, name] = tuple(buffer.shape)
    return result


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(each, _PLAIN) for each in value)
    return isinstance(value, _PLAIN)


def shared_keys(layers: Sequence[Signature]) -> set[tuple[str, str]]:
    """Return the attributes that all layers have alike."""
    first = layers[0]
    return {
        key for key in first if all(key in layer and layer[key] == first[key] for layer in layers)
    }


def unnumbered(layers: Sequence[nn.Module]) -> list[Signature]:
    """Return the layers' signatures without attributes that are each layer's own number."""
    signatures = [signature(layer) for layer in layers]
    candidates = {key for own in signatures for key in own if _NUMBER.fullmatch(key[1])}
    numbers = {
        key for key in candidates if all(own.get(key, i) == i for i, own in enumerate(signatures))
    }
    return [{k: v for k, v in own.items() if k not in numbers} for own in signatures]


def differing(a: Signature, b: Signature) -> str | None:
    """Return the first attribute in which two signatures differ, by name;

    None if they are equal.
    """
    for key in sorted(a.keys() | b.keys()):
        if key not in a or key not in b or a[key] != b[key]:
            return ".".join(filter(None, key)).removesuffix(".class")
    return None


def unlike(layers: Sequence[nn.Module], kinds: Sequence[str]) -> str | None:
    """Return two layers of one kind that differ, and the attribute; None without any."""
    first: dict[str, tuple[int, Signature]] = {}
    for i, layer in enumerate(unnumbered(layers)):
        other, first_of_kind = first.setdefault(kinds[i], (i, layer))
        if (what := differing(first_of_kind, layer)) is not None:
            return f"layers {other} and {i} differ ('{what}')"
    return None


def pattern(layers: Sequence[nn.Module]) -> Sequence[int]:
    """Return a number for each layer; equal ones where layers are alike."""
    numbers: dict[str, int] = {}
    shown = [repr(sorted(layer.items())) for layer in unnumbered(layers)]
    return [numbers.setdefault(text, len(numbers)) for text in shown]


Kinds = Mapping[str, Sequence[Any]]
"""The value of each key for each layer."""


def kinds_of(values: Kinds, count: int) -> list[str]:
    """Return the values of each layer as one text."""
    return [repr([values[key][i] for key in sorted(values)]) for i in range(count)]
