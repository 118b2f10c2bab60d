"""MiniCPM 3 and Youtu: dense models with latent attention, as DeepSeek has it."""

import math
from typing import Any

from gptailor.checkpoint.families.compatibility import ConfigKey, keys, rope
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import Config, LayerRule, RuleError, Values
from gptailor.checkpoint.files import shown


def _residual_scale(config: Config, count: int) -> float:
    """What a branch is multiplied by: it depends on how many layers there are."""
    depth = config.get("scale_depth", 1.4)
    if depth is None:
        return 1.0
    if type(depth) not in {int, float}:
        raise RuleError(f"'scale_depth' is {shown(depth)}, and should be a number")
    return float(f"{depth / math.sqrt(count):.12g}")  # the same again where it was solved for


def _own_scale(config: Config) -> Any:
    count = config.get("num_hidden_layers", 62)
    return _residual_scale(config, count) if isinstance(count, int) and count > 0 else None


def _scale_depth() -> LayerRule:
    """`scale_depth` by the root of the number of layers is kept: it is solved for their number."""

    def read(config: Config, count: int) -> list[Any]:
        return [_residual_scale(config, count)] * count

    def write(config: Config, values: Values) -> dict[str, Any]:
        if len(several := sorted(set(values))) > 1:
            raise RuleError(f"'scale_depth' makes one factor, and these layers have {several}")
        if config.get("num_hidden_layers") == len(values):
            return dict(config)
        return {**config, "scale_depth": values[0] * math.sqrt(len(values))}

    return LayerRule("scale_depth", "mlp", read, write)


def _value_width(config: Config) -> Any:
    width, heads = config.get("v_head_dim"), config.get("num_attention_heads", 40)
    hidden = config.get("hidden_size", 2560)
    derived = width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    return hidden // heads if derived else width


MINICPM = (
    Family(
        ("minicpm3",),
        keys(
            rope(), ConfigKey("v_head_dim", _value_width), ConfigKey("scale_depth", _own_scale),
            hidden_size=2560, num_attention_heads=40, hidden_act="silu", rms_norm_eps=1e-5,
            attention_bias=False, mlp_bias=False, q_lora_rank=768, kv_lora_rank=256,
            qk_nope_head_dim=64, qk_rope_head_dim=32, scale_emb=12, dim_model_base=256,
        ),
        (_scale_depth(),),
        tied=True,
    ),
    Family(
        ("youtu",),
        keys(
            rope(), hidden_size=2048, num_attention_heads=16, hidden_act="silu", rms_norm_eps=1e-6,
            attention_bias=False, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
            qk_rope_head_dim=64, v_head_dim=128, rope_interleave=True,
        ),
        tied=True,
    ),
)  # fmt: skip
