"""State-space models whose layers are one branch: Mamba 1 and 2, Falcon Mamba, Nemotron-H."""

from typing import Any

from gptailor.checkpoint.families.compatibility import TIME_STEPS, state_rank
from gptailor.checkpoint.families.family import ONE_BRANCH, Family
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import (
    FULL,
    LINEAR,
    Computed,
    Values,
    attending,
    complete,
    current_name,
)
from gptailor.checkpoint.files import shown

_SIGNS = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
"""Kinds of layers by the letters of a pattern."""


def _kinds(config: Config) -> list[Any] | None:
    """Return the kinds of Nemotron-H's layers, of a list or the older pattern; None without."""
    if (listed := config.get("layers_block_type", config.get("layer_types"))) is not None:
        if not isinstance(listed, list | tuple):
            raise RuleError(f"'layers_block_type' is {shown(listed)}, and should be a list")
        return [current_name(kind) for kind in listed]
    if (pattern := config.get("hybrid_override_pattern")) is None:
        return None
    if not isinstance(pattern, str) or not set(pattern) <= _SIGNS.keys():
        form = "a text of 'M', 'E', '*' and '-'"
        raise RuleError(f"'hybrid_override_pattern' is {shown(pattern)}, and should be {form}")
    return [_SIGNS[sign] for sign in pattern]


def _read_kinds(config: Config, count: int) -> list[Any]:
    kinds = _kinds(config)
    if kinds is None:
        kinds = [LINEAR, "moe", FULL, "mlp"]
    if len(kinds) != count:
        which = f"the pattern of layers has {len(kinds)} entries"
        raise RuleError(f"{which}, and the model has {count} layers")
    return kinds


def _write_kinds(config: Config, values: Values) -> dict[str, Any]:
    """Return the kinds in the form that the configuration has; in both where it has both."""
    kinds = complete("layers_block_type", values)
    signs = {kind: sign for sign, kind in _SIGNS.items()}
    out = {key: value for key, value in config.items() if key != "layer_types"}
    if "hybrid_override_pattern" in config:
        out["hybrid_override_pattern"] = "".join(signs[kind] for kind in kinds)
    if "hybrid_override_pattern" not in config or "layers_block_type" in config:
        out["layers_block_type"] = kinds
    return out


def _count(config: Config) -> int | None:
    kinds = _kinds(config)
    return None if kinds is None else len(kinds)


_MAMBA_KEYS = (
    state_rank("time_step_rank"),
    "hidden_size state_size layer_norm_epsilon expand conv_kernel use_bias use_conv_bias",
    "hidden_act residual_in_fp32 time_step_scale",
)
_BACKBONE: dict[str, Any] = {
    "base": "backbone.", "embed": ("embeddings.weight",), "norm": ("norm_f.weight",),
    "attn": ("norm.", "mixer."), "mlp": (),
    "no_parts": ONE_BRANCH, "no_bridge": ONE_BRANCH,
}  # fmt: skip

RECURRENT = (
    Family(("mamba",), _MAMBA_KEYS, attn_out=("mixer.out_proj",), tied=True, **_BACKBONE),
    Family(
        ("falcon_mamba",), (*_MAMBA_KEYS, "mixer_rms_eps"),
        attn_out=("mixer.out_proj",), tied=True, **_BACKBONE,
    ),
    Family(
        ("mamba2",),
        (
            TIME_STEPS, "hidden_size num_heads head_dim state_size layer_norm_epsilon expand",
            "conv_kernel n_groups use_bias use_conv_bias hidden_act residual_in_fp32",
        ),
        attn_out=("mixer.out_proj",), **_BACKBONE,
    ),
    Family(
        ("nemotron_h",),
        (
            "hidden_size time_step_min num_attention_heads num_key_value_heads head_dim",
            "attention_bias mlp_hidden_act mlp_bias ssm_state_size mamba_num_heads mamba_head_dim",
            "mamba_hidden_act n_groups conv_kernel expand use_conv_bias mamba_proj_bias",
            "n_routed_experts num_experts_per_tok routed_scaling_factor n_group topk_group",
            "norm_topk_prob use_bias layer_norm_epsilon",
        ),
        (attending(Computed("layer_types", "attn", _read_kinds, _write_kinds)),),
        count_of=_count,
        attn_out=(
            "mixer.out_proj", "mixer.o_proj", "mixer.down_proj", "mixer.experts.*.down_proj",
            "mixer.experts.down_proj", "mixer.shared_experts.down_proj",
        ),
        roles=(
            ("mixer.gate", "mlp.router"), ("mixer.up_proj", "mlp.up"),
            ("mixer.down_proj", "mlp.down"), ("mixer.experts.*.up_proj", "mlp.up"),
            ("mixer.experts.*.down_proj", "mlp.down"), ("mixer.experts.up_proj", "mlp.up"),
            ("mixer.experts.down_proj", "mlp.down"), ("mixer.shared_experts.up_proj", "mlp.up"),
            ("mixer.shared_experts.down_proj", "mlp.down"),
        ),
        **_BACKBONE,
    ),
)  # fmt: skip
