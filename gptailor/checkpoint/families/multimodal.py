"""Language models of Qwen 2, 2.5 and 3 VL: rotations along time, height and width.

Of a text all three are equal, and there they compute what Qwen 2 and 3 compute. Where a language
model stands within a model of images is in `vision.py`.
"""

from collections.abc import Mapping
from typing import Any

from gptailor.checkpoint.families.compatibility import LLAMA_KEYS, ConfigKey, rope
from gptailor.checkpoint.families.family import EXPERTS_OUT, Family
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import FULL, Computed, SparseSteps, Values
from gptailor.checkpoint.families.windowed import later_slide

_SECTIONS = ("mrope_section", "mrope_interleaved")
"""Keys of rotary settings that divide the rotations among time, height and width."""


def _text_rope(defaults: Config) -> ConfigKey:
    """Return the settings that models of a text alone have too."""
    whole = rope(renamed={"mrope": "default"})(defaults)

    def read(config: Config) -> dict[str, Any]:
        form: dict[str, Any] = whole.read(config)
        return {key: value for key, value in form.items() if key not in _SECTIONS}

    return ConfigKey(whole.name, read)


def _sections(*default: int) -> ConfigKey:
    """Return how many rotations go along time, height and width.

    A model of text alone has no such key.
    """

    def read(config: Config) -> Any:
        scaling = config.get("rope_scaling") or config.get("rope_parameters")
        absent = list(default)
        return scaling.get("mrope_section", absent) if isinstance(scaling, Mapping) else absent

    return ConfigKey("mrope_section", read)


def _without_windows(key: str, value: str | None) -> Computed:
    """Return the rule that no layer has a window: layers with one elsewhere can't come here."""

    def write(config: Config, values: Values) -> dict[str, Any]:
        for i, each in enumerate(values):
            if each != value:
                raise RuleError(
                    f"the model's layers have no window, and the layer that would be L{i} has one"
                )
        listed = isinstance(config.get(key), list | tuple)
        return {**config, key: list(values)} if listed else dict(config)

    return Computed(key, "attn", lambda config, count: [value] * count, write)


_QWEN_2 = (_text_rope, _sections(16, 24, 24), LLAMA_KEYS, "rms_norm_eps")
_QWEN_3 = (_text_rope, _sections(24, 20, 20), LLAMA_KEYS, "rms_norm_eps")

MULTIMODAL = (
    Family(("qwen2_vl_text",), _QWEN_2, later_slide(80), like="qwen2"),
    Family(("qwen2_5_vl_text",), _QWEN_2, later_slide(80), like="qwen2"),
    Family(
        ("qwen3_vl_text",), _QWEN_3,
        (_without_windows("layer_types", FULL), _without_windows("sliding_window", None)),
        like="qwen3",
    ),
    Family(
        ("qwen3_vl_moe_text",), (*_QWEN_3, "num_experts num_experts_per_tok"),
        (SparseSteps("mlp", "mlp", 60),), mlp_out=EXPERTS_OUT,
        no_bridge="its experts are stored the other way round than they compute", tied=True,
    ),
)  # fmt: skip
