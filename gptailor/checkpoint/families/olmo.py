"""OLMo 1 to 3 and EXAONE 4: from OLMo 2 on, norms stand after the branches alone."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import ConfigKey, rope, rope_by_type
from gptailor.checkpoint.families.family import (
    PATTERN_KEYS,
    POST_NORM,
    Family,
    Fold,
    llama_keys,
)

_NORMS_AFTER: dict[str, Any] = {
    "attn": ("self_attn.", "post_attention_layernorm."),
    "mlp": ("mlp.", "post_feedforward_layernorm."),
    # The branches read the hidden state without a norm before them, so c is put back there.
    "folds": (
        *(Fold(f"self_attn.{name}_proj.weight", "multiply") for name in "qkv"),
        *(Fold(f"mlp.{name}_proj.weight", "multiply") for name in ("gate", "up")),
        Fold("post_attention_layernorm.weight", "divide"),
        Fold("post_feedforward_layernorm.weight", "divide"),
    ),
    "no_bridge": POST_NORM,
}


def _every_fourth_is_full(config: rules.Config, count: int) -> list[Any]:
    """EXAONE 4: every layer slides but each `sliding_window_pattern`-th; none without a window."""
    if rules.window(config, gated=False, default=4096) is None:
        return [rules.FULL] * count
    return rules.alternating(4, PATTERN_KEYS[0])(config, count)


OLMO = (
    # Its norms have no tensors.
    Family(("olmo",), llama_keys(rope(), 4096, 32, None, clip_qkv=None)),
    Family(("olmo2",), llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-5), **_NORMS_AFTER),
    Family(
        ("olmo3",),
        llama_keys(rope_by_type(500_000.0, 500_000.0), 4096, 32, None, rms_norm_eps=1e-5),
        rules.sliding(rules.derived("layer_types", "attn", rules.alternating(4))),
        **_NORMS_AFTER,
    ),
    Family(
        ("exaone4",),
        llama_keys(
            rope(), 4096, 32, 32,
            # Full layers have rotary embeddings only where there is no window.
            ConfigKey(
                "sliding_window", lambda config: rules.window(config, gated=False, default=4096)
            ),
            rms_norm_eps=1e-5,
        ),
        rules.sliding(
            rules.derived("layer_types", "attn", _every_fourth_is_full, replaces=PATTERN_KEYS)
        ),
        **_NORMS_AFTER,
    ),
)  # fmt: skip
