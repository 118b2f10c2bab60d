"""Granite with windows, and HyperCLOVA X: multipliers as Granite has them, and more norms."""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import ConfigKey, rope
from gptailor.checkpoint.families.family import POST_NORM, Family, Fold, llama_keys


def _one_theta(config: rules.Config, count: int) -> list[Any]:
    """Every layer has the model's base of rotary embeddings."""
    given = config.get("rope_scaling") or config.get("rope_parameters")
    given = given if isinstance(given, Mapping) else {}
    return [given.get("rope_theta", config.get("rope_theta", 10_000.0))] * count


def _attention_multiplier(config: rules.Config) -> Any:
    """HyperCLOVA X: a head's width to the power of -1/2, where nothing else is said."""
    if (given := config.get("attention_multiplier")) is not None:
        return given
    width = config.get("head_dim")
    hidden, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    if width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        width = hidden // heads
    return width**-0.5 if isinstance(width, int) and width > 0 else None


def _without_post_norm(config: rules.Config) -> str | None:
    if config.get("use_post_norm", True):
        return None
    return "'use_post_norm' is false, and no norm after a branch takes the factor"


MULTIPLIED = (
    Family(
        ("granite_swa",),
        llama_keys(
            rope(), 2560, 20, 4, rms_norm_eps=1e-5, mlp_bias=False, attention_multiplier=1.0,
            residual_multiplier=1.0, embedding_multiplier=1.0, logits_scaling=1.0,
        ),
        (
            *rules.sliding(
                rules.derived("layer_types", "attn", rules.full_at(4)), default=128
            ),
            rules.derived("layer_rope_theta", "attn", _one_theta),
        ),
        tied=True,
    ),
    Family(
        ("hyperclovax",),
        llama_keys(
            rope(), 4096, 32, None, ConfigKey("attention_multiplier", _attention_multiplier),
            rms_norm_eps=1e-6, mlp_bias=False, residual_multiplier=1.0, embedding_multiplier=1.0,
            logits_scaling=1.0, use_post_norm=True,
        ),
        attn=("input_layernorm.", "self_attn.", "post_norm1."),
        mlp=("post_attention_layernorm.", "mlp.", "post_norm2."),
        folds=(Fold("post_norm1.weight", "divide"), Fold("post_norm2.weight", "divide")),
        no_scale=_without_post_norm, no_bridge=POST_NORM,
    ),
)  # fmt: skip
