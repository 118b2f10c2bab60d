"""Cohere's Command R (1 and 2): both branches of a layer read the output of one norm."""

from gptailor.checkpoint.families.compatibility import rope
from gptailor.checkpoint.families.family import PATTERN_KEYS, Family, llama_keys
from gptailor.checkpoint.families.layer_config import alternating, derived, sliding

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
            derived("layer_types", "attn", alternating(4, PATTERN_KEYS[0]), replaces=PATTERN_KEYS)
        ),
        one_norm=lambda config: True, tied=True,
    ),
)  # fmt: skip
