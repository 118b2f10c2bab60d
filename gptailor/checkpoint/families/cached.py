"""What a layer keeps of each token in the KV cache, by its tensors' shapes."""

from collections.abc import Iterator, Mapping

from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.layer_config import LINEAR, Config, LayerEntry, Refusal
from gptailor.checkpoint.families.layout import Layout

Shapes = Mapping[str, tuple[int, ...]]
"""Of a layer's tensors, by their names within the layer."""

_LATENT = ("kv_a_proj_with_mqa", "kv_a_proj")
"""Projections to the latent vector of keys and values, and to the rotated key beside it."""
_INDEX = "indexer.wk"
"""The projection to the key that an indexer finds tokens by."""
_BOTH = "kv_proj"
"""JetMoE's projection to keys and values."""


def attends(entry: LayerEntry) -> bool:
    """Whether a layer keeps something of each token, by what its configuration says of it."""
    kind = entry.get("layer_types")
    return not isinstance(kind, str) or ("attention" in kind and kind != LINEAR)


def cached_entries(
    layout: Layout, config: Config, entry: LayerEntry, shapes: Shapes
) -> int | Refusal:
    """How many numbers of each token a layer keeps: keys and values, or what they are made of.

    A layer of latent attention keeps the latent vector and the rotated key, one with an indexer its
    key too; a window is no less than all tokens. What is of one size for any text, as the state of
    linear attention, a convolution or a state space, is none of it.
    """
    if not attends(entry):
        return 0
    rows = dict(_rows(layout, shapes))
    found = None if layout.quantised is not None else _by_rows(layout, rows, shapes)
    return _by_config(layout, config) if found is None else found


def _by_rows(layout: Layout, rows: Mapping[str, int], shapes: Shapes) -> int | None:
    """By what the projections give; None where their names don't say which those are."""
    for word in (*_LATENT, _BOTH):
        if (found := [n for name, n in rows.items() if name.rpartition(".")[2] == word]) != []:
            return found[0] + sum(n for name, n in rows.items() if name.endswith(_INDEX))
    roles = {layout.family.role(f"{name}.weight"): name for name in rows}
    if "attn.k" in roles:
        keys = rows[roles["attn.k"]]
        return keys + rows.get(roles.get("attn.v", ""), keys)
    if "attn.qkv" in roles and "attn.o" in roles:
        queries = _sides(layout, shapes[f"{roles['attn.o']}.weight"])[1]
        return rows[roles["attn.qkv"]] - queries
    known = layout.known and layout.family.roles is not None
    return 0 if known and not roles.keys() & {"attn.q", "attn.v", "attn.qkv"} else None


def _rows(layout: Layout, shapes: Shapes) -> Iterator[tuple[str, int]]:
    """The projections of a layer's attention, and how many numbers each gives."""
    for name, shape in shapes.items():
        stem = name.removesuffix(".weight")
        if stem != name and len(shape) == 2 and layout.family.part(name) == "attn":
            yield stem, _sides(layout, shape)[0]


def _sides(layout: Layout, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many numbers a projection gives, and how many it takes."""
    first, second = shape[-2:]
    return (second, first) if layout.transposed else (first, second)


def _by_config(layout: Layout, config: Config) -> int | Refusal:
    """Keys and values by the numbers of heads, where the tensors don't say."""
    text = vision.text_of(config) if layout.wrapped else config
    latent, rotated = _whole(text, "kv_lora_rank"), _whole(text, "qk_rope_head_dim")
    if latent:
        return latent + rotated
    heads = _whole(text, "num_attention_heads")
    groups = _whole(text, "num_key_value_heads") or heads
    width = _whole(text, "head_dim") or _whole(text, "hidden_size") // max(heads, 1)
    if not groups * width:
        what = f"a layer of model type '{layout.model_type}'"
        return Refusal(f"nothing says what {what} keeps of a token")
    return 2 * groups * width


def _whole(config: Config, key: str) -> int:
    """A number of the configuration; 0 where it has none."""
    found = config.get(key)
    return found if isinstance(found, int) else 0
