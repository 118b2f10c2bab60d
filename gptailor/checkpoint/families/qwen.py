"""Qwen 2 and 3, dense and as mixtures of experts."""

from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import gated_window, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, Family, llama_keys
from gptailor.checkpoint.files import shown


def _after_full_ones(default: int) -> rules.Read:
    """The first `max_window_layers` are full, the others slide."""

    def derive(config: rules.Config, count: int) -> list[Any]:
        first = rules.int_of(config, "max_window_layers", default)
        slides = rules.window(config, gated=True, default=4096) is not None
        return [rules.SLIDING if slides and i >= first else rules.FULL for i in range(count)]

    return derive


def _keep_max_window_layers(config: rules.Config, values: rules.Values) -> dict[str, Any]:
    """Say the list by `max_window_layers` too, for readers that don't know `layer_types`."""
    full = list(values).index(rules.SLIDING) if rules.SLIDING in values else len(values)
    if rules.SLIDING in values and rules.FULL not in values[full:]:
        return {**config, "max_window_layers": full}
    return dict(config)


def _even_below_bound(config: rules.Config, count: int) -> list[Any]:
    """Qwen 2 MoE: every other layer below `max_window_layers` slides."""
    bound = rules.int_of(config, "max_window_layers", 28)
    slides = bool(config.get("use_sliding_window", False))
    return [
        rules.SLIDING if slides and i % 2 == 0 and i < bound else rules.FULL for i in range(count)
    ]


def sparse_steps(experts: int) -> rules.LayerRule:
    """Each `decoder_sparse_step`-th layer is sparse, but those of `mlp_only_layers`."""

    def read(config: rules.Config, count: int) -> list[Any]:
        step = rules.int_of(config, "decoder_sparse_step", 1, least=1)
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple):
            raise rules.RuleError(f"'mlp_only_layers' is {shown(dense)}, and should be a list")
        has = bool(config.get("num_experts", config.get("num_local_experts", experts)))
        sparse = [has and i not in dense and (i + 1) % step == 0 for i in range(count)]
        return [rules.SPARSE if each else rules.DENSE for each in sparse]

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        kinds = rules.complete("mlp_only_layers", values)
        dense = [i for i, kind in enumerate(kinds) if kind == rules.DENSE]
        return {**config, "mlp_only_layers": dense, "decoder_sparse_step": 1}

    return rules.LayerRule("mlp", "mlp", read, write)


def windows(first: int) -> tuple[rules.LayerRule, rules.LayerRule]:
    """The rules of layers of which only later ones slide; `first` is how many don't by default."""
    types = _after_full_ones(first)
    listed = rules.derived("layer_types", "attn", types, keep=_keep_max_window_layers)
    return rules.sliding(listed, gated=True)


_WINDOWS = windows(28)

QWEN = (
    Family(("qwen2",), llama_keys(rope(), 4096, 32, 32, rms_norm_eps=1e-6), _WINDOWS),
    Family(
        ("qwen2_moe",),
        llama_keys(
            rope(), 2048, 16, 16, rms_norm_eps=1e-6, attention_bias=True,
            num_experts=60, num_experts_per_tok=4, norm_topk_prob=False,
        ),
        (
            *rules.sliding(rules.derived("layer_types", "attn", _even_below_bound), gated=True),
            sparse_steps(60),
        ),
        mlp_out=EXPERTS_OUT,
    ),
    Family(("qwen3",), llama_keys(rope(), 4096, 32, 32, head_dim=128, rms_norm_eps=1e-6), _WINDOWS),
    Family(
        ("qwen3_moe",),
        llama_keys(
            rope(), 2048, 32, 4, gated_window(4096), rms_norm_eps=1e-6,
            num_experts=128, num_experts_per_tok=8, norm_topk_prob=False,
        ),
        (sparse_steps(128),),
        mlp_out=EXPERTS_OUT,
    ),
)  # fmt: skip
