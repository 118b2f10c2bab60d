"""State-space models whose layers are one branch: Mamba 1 and 2, Falcon Mamba, Nemotron-H."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families import layer_kinds
from gptailor.checkpoint.families.compatibility import ConfigKey, keys
from gptailor.checkpoint.families.family import ONE_BRANCH, Family
from gptailor.checkpoint.files import shown

_SIGNS = {"M": rules.LINEAR, "E": "moe", "*": rules.FULL, "-": "mlp"}
"""What the letters of a pattern stand for."""


def _kinds(config: rules.Config) -> list[Any] | None:
    """The kinds of Nemotron-H's layers, from the list or the older pattern; None without either."""
    if (listed := config.get("layers_block_type", config.get("layer_types"))) is not None:
        if not isinstance(listed, list | tuple):
            raise rules.RuleError(f"'layers_block_type' is {shown(listed)}, and should be a list")
        return [rules.current_name(kind) for kind in listed]
    if (pattern := config.get("hybrid_override_pattern")) is None:
        return None
    if not isinstance(pattern, str) or not set(pattern) <= _SIGNS.keys():
        known = "a text of 'M', 'E', '*' and '-'"
        raise rules.RuleError(
            f"'hybrid_override_pattern' is {shown(pattern)}, and should be {known}"
        )
    return [_SIGNS[sign] for sign in pattern]


def _read_kinds(config: rules.Config, count: int) -> list[Any]:
    kinds = _kinds(config)
    if kinds is None:
        kinds = [rules.LINEAR, "moe", rules.FULL, "mlp"]
    if len(kinds) != count:
        what = f"the pattern of layers has {len(kinds)} entries"
        raise rules.RuleError(f"{what}, and the model has {count} layers")
    return kinds


def _write_kinds(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    """In the form that the configuration has; both where it has both."""
    kinds = rules.complete("layers_block_type", values)
    signs = {kind: sign for sign, kind in _SIGNS.items()}
    out = {key: value for key, value in config.items() if key != "layer_types"}
    if "hybrid_override_pattern" in config:
        out["hybrid_override_pattern"] = "".join(signs[kind] for kind in kinds)
    if "hybrid_override_pattern" not in config or "layers_block_type" in config:
        out["layers_block_type"] = kinds
    return out


def _count(config: rules.Config) -> int | None:
    kinds = _kinds(config)
    return None if kinds is None else len(kinds)


def _rank(config: rules.Config) -> Any:
    rank, hidden = config.get("time_step_rank", "auto"), config.get("hidden_size")
    return -(-hidden // 16) if rank == "auto" and isinstance(hidden, int) else rank


def _limit(config: rules.Config) -> Any:
    """JSON has no infinity, and transformers writes one as an object."""
    limit = config.get("time_step_limit", (0.0, float("inf")))
    return [0.0, "Infinity"] if limit is None else [_number(end) for end in limit]


def _number(end: Any) -> Any:
    if isinstance(end, dict):
        return end.get("__float__")
    return "Infinity" if end == float("inf") else end


TIME_STEPS = ConfigKey("time_step_limit", _limit)
_RANK = ConfigKey("time_step_rank", _rank)

_BACKBONE: dict[str, Any] = {
    "base": "backbone.", "embed": ("embeddings.weight",), "norm": ("norm_f.weight",),
    "attn": ("norm.", "mixer."), "mlp": (),
    "no_parts": ONE_BRANCH, "no_bridge": ONE_BRANCH,
}  # fmt: skip

MAMBA = (
    Family(
        ("mamba",),
        keys(
            _RANK, hidden_size=768, state_size=16, layer_norm_epsilon=1e-5, expand=2,
            conv_kernel=4, use_bias=False, use_conv_bias=True, hidden_act="silu",
            residual_in_fp32=True, time_step_scale=1.0,
        ),
        attn_out=("mixer.out_proj",), tied=True, **_BACKBONE,
    ),
    Family(
        ("mamba2",),
        keys(
            TIME_STEPS, hidden_size=4096, num_heads=128, head_dim=64, state_size=128,
            layer_norm_epsilon=1e-5, expand=2, conv_kernel=4, n_groups=8, use_bias=False,
            use_conv_bias=True, hidden_act="silu", residual_in_fp32=True,
        ),
        attn_out=("mixer.out_proj",), **_BACKBONE,
    ),
    Family(
        ("falcon_mamba",),
        keys(
            _RANK, hidden_size=768, state_size=16, layer_norm_epsilon=1e-5, expand=2,
            conv_kernel=4, use_bias=False, use_conv_bias=True, hidden_act="silu",
            residual_in_fp32=True, time_step_scale=1.0, mixer_rms_eps=1e-6,
        ),
        attn_out=("mixer.out_proj",), tied=True, **_BACKBONE,
    ),
    Family(
        ("nemotron_h",),
        keys(
            hidden_size=4096, time_step_min=0.001, num_attention_heads=32, num_key_value_heads=8,
            head_dim=128, attention_bias=False, mlp_hidden_act="relu2", mlp_bias=False,
            ssm_state_size=128, mamba_num_heads=128, mamba_head_dim=64, mamba_hidden_act="silu",
            n_groups=8, conv_kernel=4, expand=2, use_conv_bias=True, mamba_proj_bias=False,
            n_routed_experts=8, num_experts_per_tok=2, routed_scaling_factor=1.0, n_group=1,
            topk_group=1, norm_topk_prob=True, use_bias=False, layer_norm_epsilon=1e-5,
        ),
        (layer_kinds.attending(rules.LayerRule("layer_types", "attn", _read_kinds, _write_kinds)),),
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
