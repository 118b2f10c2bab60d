"""Lists by layer numbers in a configuration, before its family is known."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from gptailor.plan.layer_parts import Branch

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
