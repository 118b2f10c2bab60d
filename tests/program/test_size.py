"""A plan's size from headers equals transformers' count, and the size on disk once compiled."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.plan.output_size import OutputSize
from gptailor.prepare import prepare
from gptailor.program.compile import plan_size
from tests.support.hollow import LLAMA_3_70B, llama, write_hollow
from tests.support.quantised import write_quantised
from tests.support.tiny import tiny_model

SIZED = (
    "llama",
    "gemma2",  # windows, and its head is the embedding
    "qwen3_moe",
    "gpt2",  # transposed, with one tensor of queries, keys and values
    "phi3",
    "falcon",
    "gpt_bigcode",
    "bloom",
    "deepseek_v2",  # a latent vector is kept
    "jetmoe",
    "mpt",
)
STATES = {"mamba2": (), "lfm2": (1, 5), "jamba": (1, 4), "recurrent_gemma": (2, 5)}
"""Families with layers that keep states, except these."""


def size_of(folder: Path, statements: str = "") -> OutputSize:
    plan = gptailor.loads(f'tailor 1\nmodel base = "{folder}"\n{statements}')
    prepared = prepare(plan)
    return plan_size(prepared.checked)


def cached(folder: Path) -> int:
    """The bytes that a token takes, of a cache that transformers has filled with one."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True)
    layers = made.past_key_values.layers
    return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("family", SIZED)
def test_sizes_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "base")
    plan = gptailor.loads(f'tailor 1\nmodel base = "{folder}"\ndrop L2..L3\n')
    gptailor.compile(plan, tmp_path / "out")

    result = size_of(folder, "drop L2..L3")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert result.parameters == model.num_parameters()
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0 < weights - result.bytes < 32_000  # the header
    assert result.kv_cache == cached(tmp_path / "out")


@pytest.mark.parametrize("family", STATES)
def test_only_layers_that_attend_keep_tokens(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "base")
    both, heads, width, bytes_of_float = 2, 2, 4, 4
    each = both * heads * width * bytes_of_float
    assert size_of(folder).kv_cache == len(STATES[family]) * each


def test_an_indexers_key_is_kept_too(tmp_path: Path) -> None:
    latent, rotated, key, layers = 8, 4, 8, 6
    result = size_of(tiny_model("deepseek_v32", tmp_path / "base"))
    assert result.kv_cache == (latent + rotated + key) * layers * 4


def test_a_dtype_changes_bytes_and_an_untied_head_changes_parameters(tmp_path: Path) -> None:
    tied = tiny_model("llama", tmp_path / "tied", tie_word_embeddings=True)
    other = tiny_model("llama", tmp_path / "other", seed=1, tie_word_embeddings=True)
    plain, half = size_of(tied), size_of(tied, "dtype bfloat16")
    assert half == OutputSize(plain.parameters, plain.bytes // 2, 384 // 2, 6)
    ends = f'model math = "{other}"\nembed from base\nhead from math\n'
    assert size_of(tied, ends).parameters == plain.parameters + 64 * 16


def test_the_size_of_a_large_model_needs_its_headers_alone(tmp_path: Path) -> None:
    config, shapes = llama(**LLAMA_3_70B)
    write_hollow(tmp_path / "base", config, shapes)
    result = size_of(tmp_path / "base")
    assert result == OutputSize(70_553_706_496, 2 * 70_553_706_496, 2 * 8 * 128 * 80 * 2, 80)


def test_a_quantised_models_cache_is_of_its_heads(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "base", dtype="bfloat16", hidden_size=64)
    plain = size_of(folder)
    write_quantised(folder, "gptq")
    packed = size_of(folder)
    assert packed.kv_cache == plain.kv_cache == 2 * 2 * 16 * 6 * 2
    assert packed.bytes != plain.bytes
