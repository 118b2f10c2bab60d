"""Cohere's Command R (1 and 2) and Compass: both branches of a layer read one norm's output."""

from typing import Any

from gptailor.checkpoint.families.compatibility import ConfigKey, rope
from gptailor.checkpoint.families.family import (
    EXPERTS_OUT,
    PATTERN_KEYS,
    UNFITTED,
    Family,
    llama_keys,
)
from gptailor.checkpoint.families.layer_config import (
    FULL,
    SLIDING,
    Config,
    alternating,
    derived,
    int_of,
    sliding,
)
from gptailor.checkpoint.families.layer_kinds import dense_or_sparse


def _after_dense(config: Config, count: int) -> list[Any]:
    """The first dense layers have a pattern of windows of their own."""
    first = int_of(config, "first_k_dense_replace", 0)
    inner = int_of(config, "prefix_dense_sliding_window_pattern", 1, least=1)
    outer = int_of(config, "sliding_window_pattern", 4, least=1)
    steps = [(i + 1) % inner if i < first else (i - first + 1) % outer for i in range(count)]
    return [SLIDING if step else FULL for step in steps]


COHERE = (
    Family(
        ("cohere",),
        llama_keys(
            rope(500_000.0), 8192, 64, None,
            layer_norm_eps=1e-5, use_qk_norm=False, logit_scale=0.0625,
        ),
        one_norm=lambda config: True, tied=True,
    ),
    Family(
        ("cohere2",),
        llama_keys(rope(), 8192, 64, None, layer_norm_eps=1e-5, logit_scale=0.0625),
        sliding(
            derived(
                "layer_types", "attn", alternating(4, PATTERN_KEYS[0]), replaces=PATTERN_KEYS
            )
        ),
        one_norm=lambda config: True, tied=True,
    ),
    # Each type of layers has rotary embeddings of its own, or has none.
    Family(
        ("cohere_compass_text",),
        llama_keys(
            ConfigKey("rope_parameters", lambda config: config.get("rope_parameters") or {}),
            8192, 64, None, layer_norm_eps=1e-5, logit_scale=None,
        ),
        sliding(
            derived("layer_types", "attn", lambda config, count: [FULL] * count)
        ),
        one_norm=lambda config: True, tied=True,
    ),
    Family(
        ("cohere2_moe",),
        llama_keys(
            rope(), 8192, 64, None, head_dim=128, layer_norm_eps=1e-5, rms_norm_eps=None,
            logit_scale=0.0625, num_experts=8, num_experts_per_tok=2, num_shared_experts=0,
            shared_expert_combination_strategy="average", expert_selection_fn="softmax",
            norm_topk_prob=True, prefix_dense_sliding_window_pattern=1,
        ),
        (
            *sliding(
                derived(
                    "layer_types", "attn", _after_dense, replaces=("sliding_window_pattern",)
                )
            ),
            dense_or_sparse(0),
        ),
        mlp_out=EXPERTS_OUT, no_bridge=UNFITTED, one_norm=lambda config: True, tied=True,
    ),
)  # fmt: skip
