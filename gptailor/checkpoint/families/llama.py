"""Llama, and those that name their tensors as it does: Mistral, Mixtral, SmolLM, Granite, …"""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family, llama_keys


def _every_fourth_has_none(config: rules.Config, count: int) -> list[Any]:
    every = rules.int_of(config, "no_rope_layer_interval", 4, least=1)
    return [int((i + 1) % every != 0) for i in range(count)]


_ROTATION = rules.derived("no_rope_layers", "attn", _every_fourth_has_none)
"""SmolLM 3: 1 for a layer with rotary embeddings, despite the key's name."""


def _without_rotation(config: rules.Config, count: int) -> list[Any]:
    """SmolLM 3: a layer without rotary embeddings slides, if any does."""
    slides = rules.window(config, gated=True, default=None) is not None
    rotates = _ROTATION.read(config, count)
    return [rules.SLIDING if slides and not rotate else rules.FULL for rotate in rotates]


LLAMA = (
    Family(("llama",), llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-6, mlp_bias=False)),
    Family(("mistral",), llama_keys(rope(), 4096, 32, 8, rms_norm_eps=1e-6, sliding_window=4096)),
    Family(
        ("mixtral",),
        llama_keys(
            rope(1_000_000.0), 4096, 32, 8, rms_norm_eps=1e-5, sliding_window=None,
            num_local_experts=8, num_experts_per_tok=2,
        ),
        mlp=("post_attention_layernorm.", "block_sparse_moe.", "mlp."),
        mlp_out=("block_sparse_moe.experts.*.w2", "mlp.experts.*.w2", "mlp.experts.down_proj"),
    ),
    Family(
        ("smollm3",),
        llama_keys(rope(2_000_000.0), 2048, 16, 4, rms_norm_eps=1e-6, mlp_bias=False),
        (
            _ROTATION,
            *rules.sliding(
                rules.derived("layer_types", "attn", _without_rotation), gated=True, default=None
            ),
        ),
        tied=True,
    ),
    Family(
        ("granite",),
        llama_keys(
            rope(), 4096, 32, None, rms_norm_eps=1e-6, mlp_bias=False, attention_multiplier=1.0,
            residual_multiplier=1.0, embedding_multiplier=1.0, logits_scaling=1.0,
        ),
    ),
    Family(
        ("stablelm",),
        keys(
            rope(partial=0.25), hidden_size=2560, num_attention_heads=32, num_key_value_heads=32,
            hidden_act="silu", layer_norm_eps=1e-5, use_qkv_bias=False, qk_layernorm=False,
            use_parallel_residual=False,
        ),
        one_norm=lambda config: bool(config.get("use_parallel_residual", False)),
    ),
)  # fmt: skip
