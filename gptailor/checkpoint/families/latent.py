"""Latent attention: keys and values come from one small vector, as DeepSeek 2 has it.

The MLPs are dense or mixtures of experts, and an indexer may choose the tokens that are seen.
"""

import math
from typing import Any

from gptailor.checkpoint.families.compatibility import LATENT_KEYS, ConfigKey, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, UNFITTED, Family, Fold
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import (
    Computed,
    Repeated,
    Values,
    dense_first,
    dense_or_sparse,
    int_of,
    layer_types,
)
from gptailor.checkpoint.files import shown

_ROUTED = (
    "n_routed_experts n_shared_experts num_experts_per_tok n_group topk_group norm_topk_prob "
    "routed_scaling_factor"
)
_INDEXED = "index_n_heads index_topk index_head_dim"
_EXPERTS: dict[str, Any] = {"mlp_out": EXPERTS_OUT, "no_bridge": UNFITTED}
_ALL_INDEXED = layer_types(Repeated(("indexed_attention",)))

# ------------------------------------------------------------------------------ GLM with an indexer


def _read_indexers(config: Config, count: int) -> list[Any]:
    """Return None for each layer, if each has an indexer of its own."""
    listed, pattern = config.get("indexer_types"), config.get("index_topk_pattern")
    kinds = pattern if listed is None else listed
    if kinds is None and max(int_of(config, "index_topk_freq", 1), 1) == 1:
        kinds = ["full"] * count
    if not isinstance(kinds, list | tuple | str) or not set(kinds) <= {"full", "F"}:
        key = "indexer_types" if listed is not None else "index_topk_freq"
        value = shown(kinds if kinds is not None else config.get(key))
        raise RuleError(
            f"'{key}' is {value}, where layers use the index of another layer before them"
        )
    return [None] * count


def _write_indexers(config: Config, values: Values) -> dict[str, Any]:
    own = {"indexer_types": ["full"] * len(values), "index_topk_pattern": "F" * len(values)}
    return {**config, **{key: value for key, value in own.items() if config.get(key) is not None}}


# ---------------------------------------------------------------------------------------- MiniCPM 3


def _residual_scale(config: Config, count: int) -> float:
    """Return the factor of a branch, which depends on how many layers there are."""
    depth = config.get("scale_depth", 1.4)
    if depth is None:
        return 1.0
    if type(depth) not in {int, float}:
        raise RuleError(f"'scale_depth' is {shown(depth)}, and should be a number")
    return float(f"{depth / math.sqrt(count):.12g}")  # the same again where it was solved for


def _own_scale(config: Config) -> Any:
    count = config.get("num_hidden_layers", 62)
    return _residual_scale(config, count) if isinstance(count, int) and count > 0 else None


def _read_scale_depth(config: Config, count: int) -> list[Any]:
    return [_residual_scale(config, count)] * count


def _write_scale_depth(config: Config, values: Values) -> dict[str, Any]:
    """Return the configuration with `scale_depth` solved for the number of layers."""
    if len(several := sorted(set(values))) > 1:
        raise RuleError(f"'scale_depth' makes one factor, and these layers have {several}")
    if config.get("num_hidden_layers") == len(values):
        return dict(config)
    return {**config, "scale_depth": values[0] * math.sqrt(len(values))}


def _value_width(config: Config) -> Any:
    width, heads = config.get("v_head_dim"), config.get("num_attention_heads", 40)
    hidden = config.get("hidden_size", 2560)
    derived = width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    return hidden // heads if derived else width


LATENT = (
    Family(
        ("deepseek_v2",), (rope(), LATENT_KEYS, "mlp_bias topk_method", _ROUTED),
        (dense_first("first_k_dense_replace", 0),), mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("deepseek_v3",), (rope(), LATENT_KEYS, _ROUTED, "rope_interleave"),
        (dense_first("first_k_dense_replace", 3),), mlp_out=EXPERTS_OUT,
    ),
    Family(
        ("deepseek_v32",), (rope(), LATENT_KEYS, _INDEXED, _ROUTED),
        (_ALL_INDEXED, dense_or_sparse(3)), **_EXPERTS,
    ),
    Family(
        ("glm_moe_dsa",), (rope(), LATENT_KEYS, _INDEXED, _ROUTED),
        (
            _ALL_INDEXED, dense_or_sparse(3),
            Computed("indexer_types", "attn", _read_indexers, _write_indexers),
        ),
        **_EXPERTS,
    ),
    Family(
        ("glm4_moe_lite",), (rope(), LATENT_KEYS, _ROUTED, "rope_interleave"),
        (dense_or_sparse(1, None),), **_EXPERTS,
    ),
    Family(
        ("sarvam_mla",),
        (rope(renamed={"deepseek_yarn": "yarn"}), LATENT_KEYS, _ROUTED, "rope_interleave"),
        (dense_first("first_k_dense_replace", 1),), **_EXPERTS,
    ),
    Family(
        ("axk1",), (rope(), LATENT_KEYS, _ROUTED, "rope_interleave"),
        (dense_or_sparse(1, stepped=True),),
        mlp=("post_attention_layernorm.", "mlp.", "post_mlp_layernorm."),
        roles=(("mlp.post_mlp_layernorm", "norms"),),
        folds=(
            Fold("self_attn.o_proj.weight", "divide"), Fold("self_attn.o_proj.bias", "divide"),
            Fold("mlp.down_proj.weight", "divide"), Fold("post_mlp_layernorm.weight", "divide"),
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("axk2",), (rope(), LATENT_KEYS, _INDEXED, _ROUTED, "gated_norm_rank"),
        (_ALL_INDEXED, dense_or_sparse(1, stepped=True)), **_EXPERTS,
    ),
    # Dense.
    Family(
        ("minicpm3",),
        (
            rope(), ConfigKey("v_head_dim", _value_width), ConfigKey("scale_depth", _own_scale),
            "hidden_size num_attention_heads hidden_act rms_norm_eps attention_bias mlp_bias",
            "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim scale_emb dim_model_base",
        ),
        (Computed("scale_depth", "mlp", _read_scale_depth, _write_scale_depth),), tied=True,
    ),
    Family(("youtu",), (rope(), LATENT_KEYS, "rope_interleave"), tied=True),
)  # fmt: skip
