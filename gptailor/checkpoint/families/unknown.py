"""Whether an architecture that isn't listed looks like Llama in all that is on disk."""

import re
from collections.abc import Collection, Sequence

from gptailor.checkpoint.families.layer_config import Config

POSITIONAL = re.compile(r"layer|block|pattern|interval|every|freq|sparse|dense|window|expert|depth")
"""Words in a key that may make a layer's arithmetic depend on its place."""

PLAIN = re.compile(
    r"num_hidden_layers|.*layer_?norm.*|.*layer_norm_eps.*|layerdrop|.*initializer.*"
)
"""Keys with such a word that don't."""

LISTS = re.compile(r"architectures|.*_token_ids?|keys_to_ignore.*")
"""Keys with lists that are about no layer."""

NEEDED = frozenset(
    f"{name}.weight"
    for name in (
        "input_layernorm",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.down_proj",
    )
)
SHAPE = re.compile(
    r"(input_layernorm|post_attention_layernorm)\.(weight|bias)"
    r"|self_attn\.\w+\.(weight|bias)|self_attn\.rotary_emb\.inv_freq|mlp\.\w+\.(weight|bias)"
)
"""The tensors of a layer like Llama's."""

_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


def unlike_llama(config: Config, names: Collection[str]) -> str | None:
    """Why a checkpoint can't be taken for one of Llama's shape, or None."""
    return _positional(config) or _unlike_layers(names)


def _positional(config: Config) -> str | None:
    count = config.get("num_hidden_layers")
    for key, value in config.items():
        if isinstance(value, list | tuple) and len(value) == count and not LISTS.fullmatch(key):
            return f"'{key}' may say something of each layer"
        if value and POSITIONAL.search(key) and not PLAIN.fullmatch(key):
            return f"'{key}' may make a layer depend on its place"
    return None


def _unlike_layers(names: Collection[str]) -> str | None:
    found: dict[str, set[str]] = {}
    for name in names:
        if (match := _LAYER_NAME.fullmatch(name)) is not None:
            found.setdefault(match[1], set()).add(match[2])
    kinds: Sequence[set[str]] = list(found.values())
    if not kinds or not kinds[0] >= NEEDED:
        return "its layers are not built like Llama's"
    if any(kind != kinds[0] for kind in kinds):
        return "its layers are not all built alike"
    strange = sorted(rest for rest in kinds[0] if not SHAPE.fullmatch(rest))
    return f"its layers have a tensor '{strange[0]}'" if strange else None
