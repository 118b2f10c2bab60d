"""The language model of a vision-language model, as a causal model of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import CONFIG_MAPPING

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import layout_of, split_name
from gptailor.checkpoint.families.vision import text_of, wrapper_of
from gptailor.checkpoint.models import Opened
from gptailor.plan.faults import TailorError

_SECTIONS = ("mrope_section", "mrope_interleaved")


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the language model alone.

    A model without towers keeps its configuration. Raises TailorError for a language model that
    isn't causal by itself.
    """
    wrapper = wrapper_of(config)
    if wrapper is None:
        return dict(config)
    text, name = dict(text_of(config)), str(config["model_type"])
    if wrapper.two_ways:
        message = f"the language model of a '{name}' model reads a text in both directions"
        raise TailorError(f"{message} and can't run alone")
    family = FAMILY_OF.get(text["model_type"])
    if family is not None and (like := family.like):  # transformers has it with towers only
        text = CONFIG_MAPPING[text["model_type"]].from_dict(text).to_dict()
        rotary = text.get("rope_parameters") or {}
        text["rope_parameters"] = {k: v for k, v in rotary.items() if k not in _SECTIONS}
        text["model_type"] = like
    for key in ("dtype", "torch_dtype"):  # transformers reads the outer dtype
        text.pop(key, None)
        text |= {key: config[key]} if key in config else {}
    text.pop("architectures", None)
    return text


def language_model(opened: Opened) -> Opened:
    """Return the language model alone, its tensors named as a causal model names them."""
    layout = opened.layout
    if not layout.wrapped:
        return opened
    family, tensors = layout.family, {}
    own = {"embed": layout.embed, "norm": layout.norm, "head": layout.head}
    alone = {
        "embed": [family.base + name for name in family.embed],
        "norm": [family.base + name for name in family.norm],
        "head": family.head,
    }
    for name, tensor in opened.checkpoint.tensors.items():
        place = split_name(layout, name)
        if isinstance(place, tuple):
            tensors[f"{family.base}{family.stack}{place[0]}.{place[2]}"] = tensor
        elif place is not None:
            tensors[alone[place][own[place].index(name)]] = tensor
    config = {**language_config(opened.config), "tie_word_embeddings": layout.tied}
    config.setdefault(family.count_key, layout.count)
    plain_layout = layout_of(config, tensors)
    if isinstance(plain_layout, Refusal):
        raise TailorError(plain_layout.reason)
    checkpoint = replace(opened.checkpoint, config=config, tensors=tensors)
    return replace(opened, checkpoint=checkpoint, layout=plain_layout)
