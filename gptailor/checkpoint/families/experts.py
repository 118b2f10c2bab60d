"""Mixtures of experts whose layers are built like Llama's but for their experts."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families import layer_kinds as kinds
from gptailor.checkpoint.families.compatibility import ConfigKey, keys, rope
from gptailor.checkpoint.families.family import (
    EXPERTS_OUT,
    UNFITTED,
    Family,
    Fold,
    llama_keys,
)
from gptailor.checkpoint.files import shown

_EXPERTS: dict[str, Any] = {"mlp_out": EXPERTS_OUT, "no_bridge": UNFITTED}
_SHARED: dict[str, Any] = {
    "mlp_out": (*EXPERTS_OUT, "mlp.shared_mlp.down_proj"), "no_bridge": UNFITTED
}  # fmt: skip
_SPARSE_BLOCK: dict[str, Any] = {
    "mlp": ("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
    "mlp_out": ("block_sparse_moe.experts.*.w2", "mlp.experts.*.w2", "mlp.experts.down_proj"),
    "no_bridge": UNFITTED,
}  # fmt: skip
GRANITE: dict[str, Any] = {
    "mlp": ("post_attention_layernorm.", "block_sparse_moe.", "shared_mlp."),
    "mlp_out": (
        "block_sparse_moe.output_linear", "block_sparse_moe.experts.down_proj",
        "shared_mlp.output_linear",
    ),
    "no_bridge": UNFITTED,
}  # fmt: skip
GRANITE_KEYS: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "attention_multiplier": 1.0, "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
ROUTED: dict[str, Any] = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True}


def _partial(theta: float) -> ConfigKey:
    """MiniMax M2: `rotary_dim` says how many of a head's dimensions rotate."""
    key = rope(theta)

    def read(config: rules.Config) -> Any:
        turning, size = config.get("rotary_dim"), config.get("head_dim", 128)
        if turning is None or "partial_rotary_factor" in config:
            return key.read(config)
        return key.read({**config, "partial_rotary_factor": turning / size})

    return ConfigKey(key.name, read)


def _after_windows(config: rules.Config, count: int) -> list[Any]:
    """Dots 1: the first `max_window_layers` are full, the others slide."""
    first = rules.int_of(config, "max_window_layers", 62)
    slides = config.get("sliding_window", 4096) is not None
    return [rules.SLIDING if slides and i >= first else rules.FULL for i in range(count)]


def _ernie(config: rules.Config, count: int) -> list[Any]:
    start = rules.int_of(config, "moe_layer_start_index", 1)
    end = rules.int_of(config, "moe_layer_end_index", -1, least=-1)
    return _spaced(start, count - 1 if end == -1 else end, _interval(config), count)


def _interval(config: rules.Config) -> int:
    return rules.int_of(config, "moe_layer_interval", 1, least=1)


def _spaced(start: int, end: int, step: int, count: int) -> list[Any]:
    sparse = [(i + 1) % step == 0 and start <= i <= end for i in range(count)]
    return [rules.SPARSE if each else rules.DENSE for each in sparse]


def _write_ernie(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    """A start, an end and an interval that say where the sparse layers are."""
    wanted, count = rules.complete("moe_layer_start_index", values), len(values)
    sparse = [i for i, value in enumerate(wanted) if value == rules.SPARSE]
    start, end = (sparse[0], sparse[-1]) if sparse else (count, count)
    for step in (_interval(config), *range(1, count + 1)):
        if _spaced(start, end, step, count) == wanted:
            out = {"moe_layer_start_index": start, "moe_layer_end_index": end}
            return {**config, **out, "moe_layer_interval": step}
    which = ", ".join(f"L{i}" for i in sparse)
    raise rules.RuleError(
        "'moe_layer_start_index', 'moe_layer_end_index' and 'moe_layer_interval' can't make only "
        f"{which} sparse"
    )


def _of_each(key: str, default: int) -> rules.LayerRule:
    """Hunyuan: one number for all layers, or a list with one for each."""

    def read(config: rules.Config, count: int) -> list[Any]:
        given = config.get(key, default)
        if isinstance(given, list | tuple) and len(given) != count:
            raise rules.RuleError(f"'{key}' has {len(given)} entries, and the model {count} layers")
        if not isinstance(given, list | tuple | int):
            raise rules.RuleError(f"'{key}' is {shown(given)}, and should be a number or a list")
        return list(given) if isinstance(given, list | tuple) else [given] * count

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        found = rules.complete(key, values)
        alike = len(set(found)) == 1 and not isinstance(config.get(key), list)
        return {**config, key: found[0] if alike else found}

    return rules.LayerRule(key, "mlp", read, write)


def _nested(key: str, **defaults: Any) -> ConfigKey:
    """DBRX: settings in an object of their own."""

    def read(config: rules.Config) -> Any:
        given = config.get(key)
        own = given if isinstance(given, dict) else {}
        return {name: own.get(name, default) for name, default in defaults.items()}

    return ConfigKey(key, read)


EXPERTS = (
    Family(
        ("minimax_m2",),
        llama_keys(
            _partial(5_000_000.0), 3072, 48, 8, head_dim=128, rms_norm_eps=1e-6,
            num_local_experts=256, num_experts_per_tok=8,
        ),
        **_SPARSE_BLOCK,
    ),
    Family(
        ("glm4_moe",),
        llama_keys(
            rope(partial=0.5), 4096, 96, 8, rms_norm_eps=1e-5, n_routed_experts=128,
            n_shared_experts=1, num_experts_per_tok=8, routed_scaling_factor=1.0,
            use_qk_norm=False, **ROUTED,
        ),
        (kinds.dense_first("first_k_dense_replace", 1),),
        **_EXPERTS,
    ),
    Family(
        ("solar_open",),
        llama_keys(
            rope(1_000_000.0), 4096, 64, 8, head_dim=128, rms_norm_eps=1e-5, n_routed_experts=128,
            n_shared_experts=1, num_experts_per_tok=8, routed_scaling_factor=1.0, **ROUTED,
        ),
        **_EXPERTS,
    ),
    Family(
        ("sarvam_moe",),
        llama_keys(
            rope(8_000_000.0), 4096, 64, 4, head_dim=64, rms_norm_eps=1e-6, n_routed_experts=128,
            n_shared_experts=1, num_experts_per_tok=6, routed_scaling_factor=2.5,
            use_qk_norm=True, **ROUTED,
        ),
        (kinds.dense_first("first_k_dense_replace", 1),),
        embed=("word_embeddings.weight", "embed_tokens.weight"),
        attn=("input_layernorm.", "attention.", "self_attn."),
        attn_out=("attention.dense", "self_attn.o_proj"), **_EXPERTS,
    ),
    Family(
        ("dots1",),
        llama_keys(
            rope(), 4608, 32, 32, rms_norm_eps=1e-6, n_routed_experts=None, n_shared_experts=None,
            num_experts_per_tok=None, routed_scaling_factor=1.0, n_group=1, topk_group=1,
            norm_topk_prob=False,
        ),
        (
            *rules.sliding(
                rules.derived(
                    "layer_types", "attn", _after_windows, replaces=("max_window_layers",)
                )
            ),
            kinds.dense_first("first_k_dense_replace", 0),
        ),
        **_EXPERTS,
    ),
    Family(
        ("ernie4_5_moe",),
        llama_keys(
            rope(500_000.0), 2560, 20, 4, rms_norm_eps=1e-5, use_bias=False, moe_k=6,
            moe_num_experts=64, moe_num_shared_experts=2, moe_norm_min=1e-12,
        ),
        (rules.LayerRule("mlp", "mlp", _ernie, _write_ernie),),
        tied=True, **_EXPERTS,
    ),
    Family(
        ("hunyuan_v1_moe",),
        llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-5),
        (_of_each("num_experts", 1), _of_each("moe_topk", 1)),
        **_SHARED,
    ),
    Family(
        ("hy_v3",),
        llama_keys(
            rope(11_158_840.0), 4096, 64, 8, head_dim=128, rms_norm_eps=1e-5, mlp_bias=False,
            num_experts=192, num_experts_per_tok=8, num_shared_experts=1,
            router_scaling_factor=2.826, enable_moe_fp32_combine=True,
        ),
        (kinds.dense_or_sparse(1, None),),
        **_SHARED,
    ),
    Family(
        ("olmoe",),
        llama_keys(
            rope(), 2048, 16, None, rms_norm_eps=1e-5, clip_qkv=None, num_experts=64,
            num_experts_per_tok=8, norm_topk_prob=False,
        ),
        **_EXPERTS,
    ),
    Family(
        ("flex_olmo",),
        llama_keys(
            rope(500_000.0), 4096, 32, None, rms_norm_eps=1e-6, num_experts=7,
            num_experts_per_tok=5, norm_topk_prob=False,
        ),
        attn=("self_attn.", "post_attention_layernorm."),
        mlp=("mlp.", "post_feedforward_layernorm."),
        # As OLMo 2: the branches read the hidden state without a norm before them.
        folds=(
            *(Fold(f"self_attn.{name}_proj.weight", "multiply") for name in "qkv"),
            *(Fold(f"mlp.experts.*.{name}_proj.weight", "multiply") for name in ("gate", "up")),
            Fold("mlp.experts.gate_up_proj", "multiply"),
            Fold("mlp.gate.weight", "multiply"),
            Fold("post_attention_layernorm.weight", "divide"),
            Fold("post_feedforward_layernorm.weight", "divide"),
        ),
        no_bridge=UNFITTED,
    ),
    Family(
        ("phimoe",),
        llama_keys(
            rope(1_000_000.0), 4096, 32, 8, rms_norm_eps=1e-5, sliding_window=None,
            num_local_experts=16, num_experts_per_tok=2, router_jitter_noise=0.01,
            lm_head_bias=False,
        ),
        **_SPARSE_BLOCK,
    ),
    Family(
        ("granitemoe",),
        llama_keys(rope(), 4096, 32, None, **GRANITE_KEYS),
        **GRANITE,
    ),
    Family(
        ("granitemoeshared",),
        llama_keys(rope(), 4096, 32, None, **GRANITE_KEYS),
        **GRANITE,
    ),
    Family(
        ("aria_text",),
        llama_keys(
            rope(), 4096, 32, None, rms_norm_eps=1e-6, mlp_bias=False, moe_num_experts=8,
            moe_topk=2, moe_num_shared_experts=2,
        ),
        mlp_out=("mlp.experts.fc2", "mlp.shared_experts.down_proj"), no_bridge=UNFITTED,
        roles=(("mlp.experts.fc1", "mlp.gate_up"),),
    ),
    Family(
        ("jetmoe",),
        keys(
            rope(), hidden_size=2048, num_key_value_heads=16, kv_channels=128,
            activation_function="silu", num_local_experts=8, num_experts_per_tok=2,
            rms_norm_eps=1e-6,
        ),
        attn=("input_layernorm.", "self_attention."),
        attn_out=("self_attention.experts.output_linear", "self_attention.experts"),
        mlp_out=("mlp.output_linear", "mlp"), no_bridge=UNFITTED, tied=True,
        roles=(
            ("self_attention.experts.input_linear", "attn.q"),
            ("self_attention.experts.router", ""), ("mlp.input_linear", "mlp.gate_up"),
            ("mlp.router", "mlp.router"),
        ),
    ),
    Family(
        ("dbrx",),
        keys(
            _nested("attn_config", rope_theta=10_000.0, clip_qkv=None, kv_n_heads=1),
            _nested(
                "ffn_config", ffn_act_fn={"name": "silu"}, moe_num_experts=4, moe_top_k=1,
                moe_normalize_expert_weights=1.0,
            ),
            d_model=2048, n_heads=16,
        ),
        base="transformer.", stack="blocks.", count_key="n_layers",
        embed=("wte.weight",), norm=("norm_f.weight",),
        attn=("norm_attn_norm.norm_1.", "norm_attn_norm.attn."),
        attn_out=("norm_attn_norm.attn.out_proj",),
        mlp=("norm_attn_norm.norm_2.", "ffn."), mlp_out=("ffn.experts.mlp.w2",),
        no_bridge=UNFITTED,
    ),
)  # fmt: skip
