"""Architectures as data, filed by mechanism: `MODEL_TYPES` is the index of model types.

A family's file is the first of these that fits: `recurrent` (layers are one branch), `hybrid` (some
layers don't attend: linear attention, convolutions, state spaces), `multimodal` (rotations along
time, height and width), `latent` (latent attention), `experts` (mixtures of experts), `windowed`
(some layers see a window only), `dense` (all others). `vision` has models around a language model.

The truth is in transformers' `models/*/modeling_*.py` and in the checkpoints on the Hub;
`tests/checkpoint/families/test_families.py` compares each entry with it. Other packages use
`family`, `family_file`, `layer_config`, `layout`, `lookup`, `quantised` and `vision`.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from gptailor.checkpoint.families.family import Family

MODEL_TYPES: Mapping[str, str] = {
    "dense": """
        apertus apertus1p5_text arcee biogpt bitnet bloom codegen cohere ctrl diffllama doge
        ernie4_5 exaone falcon gemma glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese
        gptj granite helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 llama
        ministral3 mistral mpt nanochat nemotron olmo olmo2 openai-gpt opt persimmon phi phi3
        seed_oss stablelm starcoder2 xglm
    """,
    "windowed": """
        cohere2 cohere_compass_text cwm exaone4 gemma2 gemma3_text gemma4_text gemma4_unified_text
        gpt_neo granite_swa ministral modernbert-decoder olmo3 qwen2 qwen3 smollm3 vaultgemma
    """,
    "experts": """
        afmoe aria_text cohere2_moe dbrx dots1 ernie4_5_moe exaone_moe flex_olmo flint glm4_moe
        gpt_oss granitemoe granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 jetmoe kolibri1
        laguna llama4_text mellum mimo_v2_flash minimax_m2 mixtral olmoe phimoe qwen2_moe
        qwen3_moe sarvam_moe solar_open
    """,
    "latent": """
        axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3
        sarvam_mla youtu
    """,
    "hybrid": """
        bailing_hybrid bamba falcon_h1 granitemoehybrid jamba kimi_linear lara_mini lfm2 lfm2_moe
        lfm3 olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma
    """,
    "recurrent": """
        falcon_mamba mamba mamba2 nemotron_h
    """,
    "multimodal": """
        qwen2_5_vl_text qwen2_vl_text qwen3_vl_moe_text qwen3_vl_text
    """,
}
"""The model types of each file, in order. A test compares them with the files."""

FILE_OF: Mapping[str, str] = {
    model_type: file for file, types in MODEL_TYPES.items() for model_type in types.split()
}
"""The file of each model type."""


@final
class _Families(Mapping[str, "Family"]):
    """Families by model type; a file is imported once one of its families is needed."""

    def __getitem__(self, model_type: str) -> "Family":
        return _families_in(FILE_OF[model_type])[model_type]

    def __contains__(self, model_type: object) -> bool:
        return model_type in FILE_OF

    def __iter__(self) -> Iterator[str]:
        return iter(FILE_OF)

    def __len__(self) -> int:
        return len(FILE_OF)


@cache
def _families_in(file: str) -> Mapping[str, "Family"]:
    families: tuple[Family, ...] = getattr(import_module(f"{__name__}.{file}"), file.upper())
    return {name: family for family in families for name in family.model_types}


FAMILY_OF: Mapping[str, "Family"] = _Families()
"""By the `model_type` of a configuration."""

__all__ = [
    "family",
    "family_file",
    "layer_config",
    "layout",
    "lookup",
    "mixture",
    "quantised",
    "vision",
    "width",
]
