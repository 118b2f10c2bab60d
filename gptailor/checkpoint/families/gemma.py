"""Gemma 1 to 3: from Gemma 2 on, a norm before and one after each branch."""

from typing import Any

from gptailor.checkpoint.families.compatibility import ConfigKey, keys, rope, rope_by_type
from gptailor.checkpoint.families.family import PATTERN_KEYS, POST_NORM, Family, Fold
from gptailor.checkpoint.families.layer_config import Config, alternating, derived, sliding


def _activation(config: Config) -> Any:
    """Gemma's first configurations say `gelu` and mean its approximation by tanh."""
    act = config.get("hidden_act", "gelu_pytorch_tanh")
    return "gelu_pytorch_tanh" if act == "gelu" else act


_FOUR_NORMS: dict[str, Any] = {
    "attn": ("input_layernorm.", "self_attn.", "post_attention_layernorm."),
    "mlp": ("pre_feedforward_layernorm.", "mlp.", "post_feedforward_layernorm."),
    "folds": (
        Fold("post_attention_layernorm.weight", "divide_offset"),
        Fold("post_feedforward_layernorm.weight", "divide_offset"),
    ),
    "no_bridge": POST_NORM,
    "tied": True,
}

GEMMA = (
    Family(
        ("gemma",),
        keys(
            rope(), ConfigKey("hidden_act", _activation), hidden_size=3072,
            num_attention_heads=16, num_key_value_heads=16, head_dim=256, rms_norm_eps=1e-6,
            attention_bias=False, use_bidirectional_attention=None,
        ),
        tied=True,
    ),
    Family(
        ("gemma2",),
        keys(
            rope(), hidden_size=2304, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
            query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
            use_bidirectional_attention=None,
        ),
        sliding(derived("layer_types", "attn", alternating(2))),
        **_FOUR_NORMS,
    ),
    Family(
        ("gemma3_text",),
        keys(
            rope_by_type(local=10_000.0, wide=1_000_000.0), hidden_size=2304,
            num_attention_heads=8, num_key_value_heads=4, head_dim=256,
            hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, attention_bias=False,
            query_pre_attn_scalar=256, attn_logit_softcapping=None, final_logit_softcapping=None,
            use_bidirectional_attention=False,
        ),
        sliding(
            derived("layer_types", "attn", alternating(6, PATTERN_KEYS[0]), replaces=PATTERN_KEYS)
        ),
        **_FOUR_NORMS,
    ),
)  # fmt: skip
