"""A configuration made tiny: the same model in all but its sizes, built on a CPU in a second.

Sizes are recognised by their names, as transformers' configurations have them. Switches, kinds,
multipliers and counts of layers stay. Lists by layers are cut to the kept layers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gptailor.plan.faults import listed
from gptailor.plugins.adopt.layer_kinds import by_layer

LEAST_LAYERS = 6
"""Layers of a tiny model, unless its configuration needs more."""
VOCABULARY = 64
"""Tokens of a tiny model."""
NARROW = 4
"""The width of a tiny model's windows and chunks: less than the texts that it is tried on."""

_TABLE: tuple[tuple[str, int | None], ...] = (
    (r".*vocab_size.*", VOCABULARY),
    (r".*_(ids?|index|idx|idxs)|seed|pretraining_tp|chunk_size_feed_forward", None),
    (r"max_(position_embeddings|seq_len|sequence_length)|n_positions|n_ctx|context_length", 128),
    (r"model_max_length|max_target_positions|original_max_position_embeddings", 128),
    (r".*layers.*|num_blocks|n_layer|.*_(period|offset|interval|step|every|freq)", None),
    (r"rel_extent|block_size|index_block_size|floor_scale", NARROW),
    (r"index_topk|centroid_intermediate_top_k|index_topk_blocks", NARROW),
    (r"index_n_heads|linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads", 4),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r"(?:.*_)?(num_key_value|num_kv|kv)_heads|num_query_groups", 2),
    (r"(?:.*_)?(num|n|attention)_(attention_)?heads?|n_heads?|num_heads", 4),
    (r"qk_(rope|nope)_head_dim|rotary_dim", 4),
    (r"mamba_d_ssm|attention_hidden_size", 64),
    (r".*head_?dim|kv_channels|d_head|mamba_d_head|dim_head|attention_head_size", 8),
    (r".*lora_rank|.*_rank|hc_lowrank|d_rel", 8),
    (r"(?:num|n)_(routed_|local_)?experts|moe_num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k|num_selected_experts", 2),
    (r"n_group|num_expert_group|n_groups|o_groups", 2),
    (r"topk_group", 1),
    (r"(mamba_)?(ssm_)?(d_)?state(_size)?|(mamba_)?chunk_size", 8),
    (r"hidden_size.*|n_embd|d_model|emb_dim|embedding_dim|lru_width|dim_model_base"
     r"|word_embed_proj_dim|embedding_size", 32),
    (r".*moe_.*intermediate_size|.*(shared|expert).*(intermediate_size|ffn.*)", 24),
    (r".*intermediate_(size|dim).*|.*ffn_(dim|hidden_size)|ffn_dim|n_inner|dff|dim_ff|d_inner"
     r"|feed_forward_size", 48),
    (r"query_pre_attn_scalar", 5),
    (r"block_multiple_of|ffn_round_up_to_multiple_of", 8),
    (r"(?!.*(pattern|use)).*(window|chunk|span|local_attention).*", NARROW),
)  # fmt: skip
"""Names of sizes, the first match counts, and their tiny values;

None for keys that aren't sizes.
"""

_COMPILED = tuple((re.compile(pattern), size) for pattern, size in _TABLE)
_KEY_HEADS = re.compile(r"(?:.*_)?(num_key_value|num_kv|kv)_heads")
_ONE_WIDTH = re.compile(r"hidden_size|d_model|n_embd")
_CHOSEN = re.compile(r"num_experts_per_tok(en)?|moe_topk|moe_k")
_FIRST = re.compile(r"first_k_dense_replace|(num|n)_dense_layers|.*_start_index")
_SENSIBLE = {"bos_token_id": 1, "eos_token_id": 2}


@final
@dataclass(frozen=True)
class Tiny:
    """A tiny configuration, the numbers of the layers that it kept, and the keys of its sizes."""

    config: dict[str, Any]
    layers: tuple[int, ...]
    sizes: frozenset[str]


def shrunken(config: Mapping[str, Any], count_key: str) -> Iterator[Tiny]:
    """Yield tiny configurations to try, the likeliest first."""
    layers = kept_layers(config, config[count_key])
    first = with_layers(_sized(config), config, layers, count_key)
    sizes = frozenset(key for key in config if _size(key, config[key]) is not None)
    yield Tiny(first, layers, sizes)
    for update in _variations(config, first):
        yield Tiny({**first, **update}, layers, frozenset(sizes | update.keys()))
    yield Tiny({**first, **_in_proportion(config, first, sizes)}, layers, sizes)


def kept_layers(config: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Return the layers that a tiny model keeps: all kinds, and two of each if possible.

    A kind is the configuration of a layer by its number.
    """
    by_key = by_layer(config, count)
    kinds: dict[str, list[int]] = {}
    for i in range(count):
        kinds.setdefault(repr([values[i] for values in by_key.values()]), []).append(i)
    preferred = [positions[0] for positions in kinds.values()]
    preferred += [positions[1] for positions in kinds.values() if len(positions) > 1]
    preferred += range(count)
    first = max((config[key] for key in config if _is_first(config, key)), default=0)
    size = min(count, max(LEAST_LAYERS, len(kinds), first + 3))
    return tuple(sorted(list(dict.fromkeys(preferred))[:size]))


def _is_first(config: Mapping[str, Any], key: str) -> bool:
    return _FIRST.fullmatch(key) is not None and type(config[key]) is int


def with_layers(
    out: Mapping[str, Any], config: Mapping[str, Any], layers: Sequence[int], count_key: str
) -> dict[str, Any]:
    """Return a configuration with the lists and the count of these layers of another."""
    result = dict(out)
    for key, values in by_layer(config, config[count_key]).items():
        if len(config[key]) == len(values) and values == list(config[key]):
            result[key] = [values[i] for i in layers]
        else:
            result[key] = [new for new, old in enumerate(layers) if values[old]]
    for key in {count_key, "num_hidden_layers"} & result.keys():
        result[key] = len(layers)
    return result


def _size(key: str, value: Any) -> int | None:
    """Return the tiny value of a size; None for other keys."""
    if type(value) is not int or value < 0:
        return None
    size = next((size for pattern, size in _COMPILED if pattern.fullmatch(key)), None)
    return None if size is None else min(size, value)


def _sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with small sizes, and no token beyond the vocabulary."""
    out = dict(config)
    for key, value in config.items():
        if (size := _size(key, value)) is not None:
            out[key] = size
        elif key.endswith("_token_id") and value is not None:
            small = type(value) is int and value < VOCABULARY
            out[key] = value if small else _SENSIBLE.get(key, 0)
    return out


def _variations(config: Mapping[str, Any], tiny: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield further sizes to try where sizes depend on each other in another way."""
    heads = next((tiny[key] for key in ("num_attention_heads", "n_head") if key in tiny), None)
    key_heads = [key for key in tiny if _KEY_HEADS.fullmatch(key)]
    chosen = dict.fromkeys([k for k in tiny if _CHOSEN.fullmatch(k) and tiny[k] is None], 2)
    if "head_dim" in tiny and config["head_dim"] == config.get("qk_rope_head_dim", ""):
        rotary = {"head_dim": tiny["qk_rope_head_dim"]}
        yield rotary | chosen
        yield rotary | chosen | dict.fromkeys(key_heads, heads)
    if chosen:
        yield chosen
    if heads is not None and key_heads:
        yield chosen | dict.fromkeys(key_heads, heads)
    wide = [key for key in tiny if _ONE_WIDTH.fullmatch(key)]
    if wide:
        yield chosen | dict.fromkeys(wide, 64)
    if "head_dim" in tiny:
        yield chosen | {"head_dim": 16 if tiny["head_dim"] else 8}


def _in_proportion(
    config: Mapping[str, Any], tiny: Mapping[str, Any], sizes: frozenset[str]
) -> dict[str, Any]:
    """Return all widths divided by one number, so that their relations stay."""
    width = next((config[key] for key in config if _ONE_WIDTH.fullmatch(key)), None)
    factor = width // 64 if type(width) is int else 1
    wide = [key for key in sizes if tiny[key] >= 8 and "vocab" not in key and "pos" not in key]
    return {
        key: config[key] // factor
        for key in wide
        if factor > 1 and config[key] >= 64 and config[key] % factor == 0
    }


def unshrunk(config: Mapping[str, Any], texts: int) -> str | None:
    """Return the keys that look like windows wider than texts of `texts` tokens, or None."""
    wide = [
        quoted_key
        for quoted_key, value in config.items()
        if re.search(r"window|chunk", quoted_key)
        and type(value) is int
        and value >= texts
        and not re.search(r"layers|feed_forward|pattern", quoted_key)
    ]
    return listed(f"'{key}'" for key in wide) if wide else None
