"""Models with a language model and towers: the places of its configuration and tensors.

A *wrapper* is such a model's type. Its language model's configuration is in `text_config`, and
its layers are the layers; the towers, the projectors and their configurations stay as they are.
Disk names are from transformers' `conversion_mapping.py`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

from gptailor.checkpoint.families.layer_config import Config, RuleError

TEXT = "text_config"
TOWERS = ("vision_config", "audio_config")

_NAMED = re.compile(r"(?P<name>.+)_token_(id|index)")
_OF_LANGUAGE = frozenset({"bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start"})
"""Tokens that a language model knows by itself; others stand for images, sounds and their ends."""


@final
@dataclass(frozen=True)
class Wrapper:
    """A type of model with a language model in it.

    `text` is the type of its language model: the `only` one, or the type if the configuration names
    no type. `tied` is the meaning of a missing `tie_word_embeddings`. Where `flat`, older
    configurations have the language model's keys next to `vision_config`. `stacked` says that the
    features of some of the tower's layers are added after as many of the first layers; `two_ways`
    that text is read in both directions.
    """

    text: str
    only: bool = True
    tied: bool = False
    flat: bool = False
    stacked: bool = False
    two_ways: bool = False


WRAPPERS: Mapping[str, Wrapper] = {
    "qwen2_vl": Wrapper("qwen2_vl_text", flat=True),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text", flat=True),
    "qwen3_vl": Wrapper("qwen3_vl_text", stacked=True),
    "qwen3_vl_moe": Wrapper("qwen3_vl_moe_text", stacked=True),
    "qwen3_5": Wrapper("qwen3_5_text"),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text"),
    "gemma3": Wrapper("gemma3_text", tied=True),
    "gemma4": Wrapper("gemma4_text", tied=True),
    "llama4": Wrapper("llama4_text"),
    "mistral3": Wrapper("mistral", only=False, tied=True),
    "llava": Wrapper("llama", only=False),
    "llava_next": Wrapper("llama", only=False),
    "llava_onevision": Wrapper("qwen2", only=False),
    "internvl": Wrapper("qwen2", only=False, tied=True),
    "idefics3": Wrapper("llama", only=False),
    "smolvlm": Wrapper("llama", only=False),
    "paligemma": Wrapper("gemma", only=False, tied=True, two_ways=True),
}
"""By `model_type`."""


def wrapper_of(config: Config) -> Wrapper | None:
    """Return the wrapper of the language model, if there is one."""
    name = config.get("model_type")
    return WRAPPERS.get(name) if isinstance(name, str) else None


def text_of(config: Config) -> Config:
    """Return the language model's configuration: the whole one, if nothing wraps it.

    Raises RuleError if it is missing.
    """
    if (wrapper := wrapper_of(config)) is None:
        return config
    section = config.get(TEXT)
    if section is None and wrapper.flat:
        outer = {*TOWERS, TEXT, "architectures", "model_type"}
        section = {k: v for k, v in config.items() if k not in outer and not _is_visual_token(k)}
    if not isinstance(section, Mapping):
        state = "isn't an object" if TEXT in config else "is missing"
        raise RuleError(f"'{TEXT}' {state}, expected the language model's configuration")
    text = dict(section)
    text["model_type"] = wrapper.text if wrapper.only else section.get("model_type", wrapper.text)
    if wrapper.two_ways and text.get("use_bidirectional_attention") is None:
        text["use_bidirectional_attention"] = True
    return text


def with_text(config: Config, text: Config) -> dict[str, Any]:
    """Return the configuration with this one of its language model, all else unchanged.

    If a key is also outside of `text_config`, as some versions of transformers write it, it is
    changed in both places. Raises RuleError where the two don't agree.
    """
    if wrapper_of(config) is None:
        return dict(text)
    old = text_of(config)
    dropped = old.keys() - text.keys()
    new = {key: v for key, v in text.items() if key not in old or old[key] != v}
    if config.get(TEXT) is None:
        return {key: value for key, value in config.items() if key not in dropped} | new
    count, inner = "num_hidden_layers", config[TEXT]
    if count in new and count in old and config.get(count, old[count]) != old[count]:
        raise RuleError(f"'{count}' is {config[count]}, but {old[count]} in '{TEXT}'")
    outer = {k: v for k, v in config.items() if k not in dropped or v != inner.get(k)}
    both = {k: v for k, v in new.items() if k in outer and outer[k] == old.get(k)}
    kept = {k: v for k, v in inner.items() if k not in dropped}
    return {**outer, **both, TEXT: {**kept, **new}}


def ties(config: Config, of_text: bool) -> bool:
    """Return whether the embedding serves as the head if the disk has no head, by either one.

    `of_text` is the value of a missing key in the language model's family.
    """
    wrapper, text = wrapper_of(config), config.get(TEXT)
    default = wrapper is not None and wrapper.tied
    inner = text.get("tie_word_embeddings", of_text) if isinstance(text, Mapping) else False
    return bool(config.get("tie_word_embeddings", default) or inner)


def with_dtype(config: Config, dtype: str) -> dict[str, Any]:
    """Return the configuration with another dtype, for the towers too if they name one."""
    names = ("dtype", "torch_dtype")
    out = {**config, **dict.fromkeys([n for n in names if n in config] or names[:1], dtype)}
    for part in (TEXT, *TOWERS) if wrapper_of(config) is not None else ():
        if isinstance(inner := config.get(part), Mapping):
            out[part] = {**inner, **{name: dtype for name in names if name in inner}}
    return out


# ------------------------------------------------------------------------------------------ tokens


def _is_visual_token(key: str) -> bool:
    """Return whether a key names the token that stands for an image, a sound or an end."""
    match = _NAMED.fullmatch(key)
    return match is not None and match["name"] not in _OF_LANGUAGE


def visual_tokens(config: Config) -> dict[str, int]:
    """Return the numbers of tokens that stand for images, sounds and their ends, by key."""
    if wrapper_of(config) is None:
        return {}
    return {k: v for k, v in config.items() if _is_visual_token(k) and type(v) is int}


def _language_tokens(config: Config) -> dict[str, Any]:
    keys = (key for key in config if key.endswith("_token_id") and not _is_visual_token(key))
    return {key: config[key] for key in keys}


def with_tokens_of(config: Config, donor: Config) -> dict[str, Any]:
    """Return the configuration with the special tokens of another one's language model."""
    text, outer = text_of(config), _language_tokens(config)
    tokens = {**_language_tokens(donor), **_language_tokens(text_of(donor))}
    retokened = {k: v for k, v in text.items() if k not in _language_tokens(text)} | tokens
    out = with_text(config, retokened)
    if wrapper_of(config) is None:
        return out
    kept = {k: v for k, v in out.items() if k not in outer}
    return kept | {k: tokens[k] for k in outer if k in tokens}


# ----------------------------------------------------------------------------------------- tensors

_ROOTS = (
    ("model.language_model.", ""),
    ("language_model.{}", "language_model."),
    ("language_model.", ""),
    ("model.text_model.", ""),
    ("text_model.", ""),
    ("{}", ""),
)
"""Prefixes of a language model's tensors, each with its head's. `{}` is the prefix in a checkpoint
of the language model alone."""


def roots(base: str) -> dict[str, str]:
    """Return all prefixes of a language model's tensors, each with its head's.

    `base` is the prefix in a checkpoint of the language model alone.
    """
    return {root.format(base): head for root, head in _ROOTS}


def root_of(base: str, stack: str, names: Collection[str]) -> tuple[str, str]:
    """Return the prefixes of the language model and of its head, by all tensors' names.

    Raises RuleError if the model is missing, or if there are two.
    """
    heads = roots(base)
    present = [root for root in heads if any(name.startswith(root + stack) for name in names)]
    if len(present) > 1:
        raise RuleError(f"both '{present[0]}{stack}' and '{present[1]}{stack}' have tensors")
    if not present:
        likely = f"'{next(iter(heads))}{stack}'"
        raise RuleError(f"there are no tensors of a language model, as {likely}")
    return present[0], heads[present[0]]


def stacked_features(config: Config) -> int:
    """Return the number of first layers after which features are added. Raises RuleError."""
    wrapper = wrapper_of(config)
    if wrapper is None or not wrapper.stacked:
        return 0
    vision = config.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    if indexes is None:
        return 3
    if not isinstance(indexes, list | tuple):
        raise RuleError("'deepstack_visual_indexes' should be a list")
    return len(indexes)
