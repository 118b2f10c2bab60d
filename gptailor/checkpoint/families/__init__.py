"""Architectures as data, one file for each group of related ones; `FAMILIES` has them all.

The truth is in transformers' `models/*/modeling_*.py` and in the checkpoints on the Hub;
`tests/checkpoint/families/test_families.py` compares each entry with it. Other packages use
`cached`, `family`, `family_file`, `lookup`, `layout`, `layer_config`, `quantised` and `vision`.
"""

from gptailor.checkpoint.families.cohere import COHERE
from gptailor.checkpoint.families.dense import DENSE
from gptailor.checkpoint.families.experts import EXPERTS
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.gemma import GEMMA
from gptailor.checkpoint.families.glm import GLM
from gptailor.checkpoint.families.gpt import GPT
from gptailor.checkpoint.families.gptj import GPTJ
from gptailor.checkpoint.families.granite import MULTIPLIED
from gptailor.checkpoint.families.hybrid import HYBRID
from gptailor.checkpoint.families.latent import DEEPSEEK, LATENT
from gptailor.checkpoint.families.llama import LLAMA
from gptailor.checkpoint.families.mamba import MAMBA
from gptailor.checkpoint.families.minicpm import MINICPM
from gptailor.checkpoint.families.mistral import MISTRAL
from gptailor.checkpoint.families.modernbert import MODERNBERT
from gptailor.checkpoint.families.olmo import OLMO
from gptailor.checkpoint.families.opt import OPT
from gptailor.checkpoint.families.phi import PHI
from gptailor.checkpoint.families.qwen import QWEN
from gptailor.checkpoint.families.qwen_vl import QWEN_VL
from gptailor.checkpoint.families.windowed import WINDOWED

FAMILIES: tuple[Family, ...] = (
    *LLAMA, *MISTRAL, *QWEN, *GEMMA, *PHI, *GLM, *OLMO, *DENSE, *COHERE, *GPT, *DEEPSEEK,
    *HYBRID, *MAMBA, *EXPERTS, *WINDOWED, *LATENT, *QWEN_VL,
    *GPTJ, *OPT, *MULTIPLIED, *MINICPM, *MODERNBERT,
)  # fmt: skip

FAMILY_OF: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}
"""By the `model_type` of a configuration."""

__all__ = [
    "cached",
    "family",
    "family_file",
    "layer_config",
    "layout",
    "lookup",
    "quantised",
    "vision",
]
