"""The architectures that GGUF files are read of: what each one is, and what it says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, final

from gptailor.checkpoint.formats.gguf_names import LAYER_STEMS, MIXTRAL_STEMS


class FileFacts(Protocol):
    """What a file says: numbers by their keys, and what is counted of them."""

    hidden: int
    heads: int
    head: int
    layers: int

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise what is wrong."""

    def fact(self, key: str) -> object:
        """What is said."""

    def count(self, key: str, default: int | None = None) -> int:
        """A fact that is a positive whole number."""

    def real(self, key: str, default: float | None = None) -> float:
        """A fact that is a positive number."""

    def rope(self) -> dict[str, Any]:
        """The rotary embeddings."""


_Settings = Callable[[FileFacts], dict[str, Any]]
"""What a configuration says besides what all have."""


@final
@dataclass(frozen=True)
class ReadArchitecture:
    """An architecture of GGUF's: its model, and what differs from the others here.

    `stems` are the tensors of a layer. `permuted` says whether rows of queries and keys are in
    llama.cpp's order, `shifted` whether norms are stored with 1 added to them. `biased` are the
    projections with biases; `says` are the keys that it knows besides those of all.
    """

    model_type: str
    model_class: str
    stems: Mapping[str, str]
    permuted: bool = False
    shifted: bool = False
    biased: frozenset[str] = frozenset()
    says: frozenset[str] = frozenset()
    settings: _Settings = lambda facts: {}


_GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
"""Gemma's activation, under the two keys that its configurations have it."""


_WINDOW = "attention.sliding_window"
_LOCAL_BASE = "rope.freq_base_swa"
_PATTERN = "attention.sliding_window_pattern"


def _gemma2(facts: FileFacts) -> dict[str, Any]:
    return {
        **_GELU,
        "attn_logit_softcapping": facts.real("attn_logit_softcapping"),
        "final_logit_softcapping": facts.real("final_logit_softcapping"),
        "layer_types": _layer_types(facts, 2),
        "query_pre_attn_scalar": _query_scalar(facts, 46),
        "sliding_window": facts.count(_WINDOW),
    }


def _gemma3(facts: FileFacts) -> dict[str, Any]:
    rope, local = facts.rope(), facts.real(_LOCAL_BASE, 10_000.0)
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"], "rope_local_base_freq": local}
    if rope["rope_type"] != "default":
        older["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return {
        **_GELU,
        "query_pre_attn_scalar": _query_scalar(facts, 62),
        "sliding_window": facts.count(_WINDOW),
        "layer_types": _layer_types(facts, 6),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
        **older,
    }


def _layer_types(facts: FileFacts, period: int) -> list[str]:
    """Which layers slide: all but the last of each period, or those that the file lists."""
    said = facts.fact(_PATTERN)
    if not isinstance(said, tuple):
        period = facts.count(_PATTERN, period)
        slides = [(number + 1) % period != 0 for number in range(facts.layers)]
    elif len(said) == facts.layers and all(each in (0, 1) for each in said):
        slides = [bool(each) for each in said]
    else:
        facts.refuse(f"'{_PATTERN}' is no list of {facts.layers} yes or no")
    return ["sliding_attention" if each else "full_attention" for each in slides]


def _query_scalar(facts: FileFacts, layers_of_27b: int) -> int:
    """What queries are divided by the root of: files don't say, and llama.cpp knows by the size."""
    return facts.hidden // facts.heads if facts.layers == layers_of_27b else facts.head


def _phi3(facts: FileFacts) -> dict[str, Any]:
    # What the class takes where nothing is said are tokens of Phi 3's own vocabulary.
    return {
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        # Phi 4, whose layers don't slide, says 0.
        "sliding_window": None if facts.fact(_WINDOW) == 0 else facts.count(_WINDOW),
    }


def _mixtral(facts: FileFacts) -> dict[str, Any]:
    return {
        "num_local_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "sliding_window": None,
    }


def _qwen_moe(facts: FileFacts) -> dict[str, Any]:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": facts.count("expert_feed_forward_length"),
        "num_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
    }


def _qwen2moe(facts: FileFacts) -> dict[str, Any]:
    shared = facts.count("expert_shared_feed_forward_length")
    return _qwen_moe(facts) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def _qwen3moe(facts: FileFacts) -> dict[str, Any]:
    return _qwen_moe(facts) | {"attention_bias": False, "norm_topk_prob": True}


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_EXPERT_WIDTH = "expert_feed_forward_length"

ARCHITECTURES: Mapping[str, ReadArchitecture] = {
    "llama": ReadArchitecture("llama", "LlamaForCausalLM", LAYER_STEMS["llama"], permuted=True),
    "qwen2": ReadArchitecture("qwen2", "Qwen2ForCausalLM", LAYER_STEMS["qwen2"], biased=_QKV),
    "qwen3": ReadArchitecture(
        "qwen3",
        "Qwen3ForCausalLM",
        LAYER_STEMS["qwen3"],
        settings=lambda facts: {"attention_bias": False},
    ),
    "gemma": ReadArchitecture(
        "gemma",
        "GemmaForCausalLM",
        LAYER_STEMS["gemma"],
        shifted=True,
        settings=lambda facts: _GELU,
    ),
    "gemma2": ReadArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        LAYER_STEMS["gemma2"],
        shifted=True,
        says=frozenset({"attn_logit_softcapping", "final_logit_softcapping", _WINDOW, _PATTERN}),
        settings=_gemma2,
    ),
    "gemma3": ReadArchitecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        LAYER_STEMS["gemma3"],
        shifted=True,
        says=frozenset({_WINDOW, _PATTERN, _LOCAL_BASE}),
        settings=_gemma3,
    ),
    "phi3": ReadArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        LAYER_STEMS["phi3"],
        says=frozenset({_WINDOW}),
        settings=_phi3,
    ),
    "qwen2moe": ReadArchitecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        LAYER_STEMS["qwen2moe"],
        biased=_QKV,
        says=frozenset({_EXPERT_WIDTH, "expert_shared_feed_forward_length"}),
        settings=_qwen2moe,
    ),
    "qwen3moe": ReadArchitecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        LAYER_STEMS["qwen3moe"],
        says=frozenset({_EXPERT_WIDTH}),
        settings=_qwen3moe,
    ),
}
"""By GGUF's names. Mistral and SmolLM2 are `llama`."""

MIXTRAL = replace(
    ARCHITECTURES["llama"],
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    stems=MIXTRAL_STEMS,
    says=frozenset({_EXPERT_WIDTH}),
    settings=_mixtral,
)
"""A `llama` with experts."""
