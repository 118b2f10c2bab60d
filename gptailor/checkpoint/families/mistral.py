"""Mistral's later ones: Ministral, whose layers may slide one by one, and Ministral 3; and CWM."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import rope
from gptailor.checkpoint.families.family import Family, llama_keys


def _all_slide(config: rules.Config, count: int) -> list[Any]:
    """Every layer slides, if there is a window."""
    slides = rules.window(config, gated=False, default=4096) is not None
    return [rules.SLIDING if slides else rules.FULL] * count


_MINISTRAL_ROPE = {
    "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0,
    "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_CWM_ROPE = {
    "rope_type": "llama3", "rope_theta": 1_000_000.0, "factor": 16.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
}  # fmt: skip

MISTRAL = (
    Family(
        ("ministral",),
        llama_keys(rope(), 4096, 32, 8, rms_norm_eps=1e-6),
        rules.sliding(rules.derived("layer_types", "attn", _all_slide)),
    ),
    Family(
        ("ministral3",),
        llama_keys(
            rope(default=_MINISTRAL_ROPE), 4096, 32, 8, head_dim=128, rms_norm_eps=1e-5,
            sliding_window=None,
        ),
    ),
    Family(
        ("cwm",),
        llama_keys(
            rope(1_000_000.0, default=_CWM_ROPE), 6144, 48, 8, head_dim=128, rms_norm_eps=1e-5,
            mlp_bias=False,
        ),
        rules.sliding(rules.derived("layer_types", "attn", rules.full_at(4)), default=8192),
    ),
)  # fmt: skip
