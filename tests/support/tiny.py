"""Tiny complete checkpoint folders of every family: random weights, configuration, tokenizer."""

import json
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.support.tiny_dense import DENSE, GPT, LATENT
from tests.support.tiny_mixed import COMMON, EXPERTS, HEADS, LLAMA, MIXED

SPECIAL = ("<unk>", "<s>", "</s>")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,;:!?'\"()+-*/=<>_%[]#"
VOCABULARY = (*SPECIAL, *LETTERS)
VOCAB_SIZE = 64

GEMMA = {**LLAMA, "head_dim": 4, "query_pre_attn_scalar": 5, "sliding_window": 4}
DEEPSEEK = {
    **LATENT,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "qwen2": LLAMA,
    "qwen2_moe": {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 12},
    "qwen3": HEADS,
    "qwen3_moe": {**LLAMA, **EXPERTS, "head_dim": 4},
    "gemma": HEADS,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": LLAMA,
    "smollm3": LLAMA,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "granite": {**LLAMA, "residual_multiplier": 0.7, "attention_multiplier": 0.4},
    "stablelm": LLAMA,
    "cohere": LLAMA,
    "cohere2": {**LLAMA, "sliding_window": 4},
    "gpt2": GPT,
    "gpt_neox": {**COMMON, "intermediate_size": 24, "max_position_embeddings": 128},
    "falcon": {**COMMON, "max_position_embeddings": 128},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    **DENSE,
    **MIXED,
}
"""The settings that make each family tiny; all others are the family's defaults."""


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Write a file of JSON lines."""
    path.write_text("\n".join(map(json.dumps, rows)))


def letters(count: int, seed: int = 0) -> str:
    """Text of this many letters, each a token of the tiny models."""
    drawn = torch.randint(len(LETTERS), (count,), generator=torch.Generator().manual_seed(seed))
    return "".join(LETTERS[number] for number in drawn.tolist())


def tiny_model(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 6,
    dtype: str = "float32",
    **config: Any,
) -> Path:
    """Write a checkpoint of the family, its weights random and of a realistic size; its folder."""
    settings = {
        "num_hidden_layers": layers,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        **CONFIGURATIONS[family],
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _files(family, json.dumps(settings), seed, dtype).items():
        (folder / name).write_bytes(data)
    write_tokenizer(folder)
    return folder


@lru_cache(maxsize=256)
def _files(family: str, settings: str, seed: int, dtype: str) -> Mapping[str, bytes]:
    """The configuration and the weights: many tests write the same models."""
    with torch.random.fork_rng(devices=[]):  # some draw their steps of time, which stay
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **json.loads(settings))
        model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed)
    with TemporaryDirectory() as folder:
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def tiny_models(folder: Path, *names: str, layers: int = 5, **config: Any) -> None:
    """Write several models of one family into a folder, each with weights of its own seed."""
    for seed, name in enumerate(names):
        tiny_model("llama", folder / name, seed=seed, layers=layers, **config)


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Give each parameter random values that leave the hidden state near 1, norms included."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    wide = {id(module.weight) for module in embeddings}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.dim() == 1:  # a norm's weight or a bias, around its old values
                parameter.add_(0.2 * noise)
            elif id(parameter) in wide:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single characters in lower case, which `AutoTokenizer` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@cache
def _tokenizer() -> str:
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer.to_str(pretty=True)
