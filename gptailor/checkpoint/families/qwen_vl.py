"""The language models of Qwen 2, 2.5 and 3 VL: rotations along time, height and width.

Of a text all three are equal, and there they compute what Qwen 2 and 3 compute.
"""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families import layer_config as rules
from gptailor.checkpoint.families.compatibility import ConfigKey, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, Family, llama_keys
from gptailor.checkpoint.families.qwen import sparse_steps, windows

_SECTIONS = ("mrope_section", "mrope_interleaved")
"""Keys of rotary settings that divide the rotations among time, height and width."""


def _rotary(theta: float) -> ConfigKey:
    """The settings that those of a text have too."""
    whole = rope(theta, renamed={"mrope": "default"})

    def read(config: rules.Config) -> dict[str, Any]:
        form: dict[str, Any] = whole.read(config)
        return {key: value for key, value in form.items() if key not in _SECTIONS}

    return ConfigKey(whole.name, read)


def _sections(default: list[int]) -> ConfigKey:
    """How many rotations go along time, height and width; a model of text alone has no such key."""

    def read(config: rules.Config) -> Any:
        given = config.get("rope_scaling") or config.get("rope_parameters")
        return given.get("mrope_section", default) if isinstance(given, Mapping) else default

    return ConfigKey("mrope_section", read)


def _without_windows(key: str, value: str | None) -> rules.LayerRule:
    """No layer has a window, and a layer that has one elsewhere can't come here."""

    def write(config: rules.Config, values: rules.Values) -> dict[str, Any]:
        for i, each in enumerate(values):
            if each != value:
                raise rules.RuleError(
                    f"the model's layers have no window, and the layer that would be L{i} has one"
                )
        listed = isinstance(config.get(key), list | tuple)
        return {**config, key: list(values)} if listed else dict(config)

    def read(config: rules.Config, count: int) -> list[Any]:
        return [value] * count

    return rules.LayerRule(key, "attn", read, write)


_NO_WINDOWS = (
    _without_windows("layer_types", rules.FULL),
    _without_windows("sliding_window", None),
)

QWEN_VL = (
    *(
        Family(
            (name,),
            llama_keys(
                _rotary(1_000_000.0), 8192, 64, 8, _sections([16, 24, 24]), rms_norm_eps=1e-5,
            ),
            windows(80),
            like="qwen2",
        )
        for name in ("qwen2_vl_text", "qwen2_5_vl_text")
    ),
    Family(
        ("qwen3_vl_text",),
        llama_keys(
            _rotary(500_000.0), 4096, 32, 32, _sections([24, 20, 20]), head_dim=128,
            rms_norm_eps=1e-6,
        ),
        _NO_WINDOWS,
        like="qwen3",
    ),
    Family(
        ("qwen3_vl_moe_text",),
        llama_keys(
            _rotary(500_000.0), 2048, 16, 16, _sections([24, 20, 20]), head_dim=None,
            rms_norm_eps=1e-6, num_experts=60, num_experts_per_tok=4,
        ),
        (sparse_steps(60),),
        mlp_out=EXPERTS_OUT,
        no_bridge="its experts are stored the other way round than they compute",
        tied=True,
    ),
)  # fmt: skip
