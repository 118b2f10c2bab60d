"""Tokenizers of GGUF files, held to llama.cpp's by the name of each way to split a text first."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf
from tests.support import llama_cpp
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, TRICKY, write_byte_level

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 704,
    "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": 696, "eos_token_id": 698,
}  # fmt: skip
TEXTS = [
    *TRICKY,
    TEXT,
    "a=b $c ^d~ `e` |f| 1234567 <g>+h 12% (x)[y]",
    "\u0663\u0664\u0665 1\u0967 x\u00b2 \u00a31,000\u20ac \u00bf?\u00a1!",
]
NAMES = (
    "smollm", "starcoder", "refact", "command-r", "gpt-2", "mpt", "olmo", "falcon", "stablelm2",
    "llama-bpe", "dbrx", "smaug-bpe", "tekken", "qwen2",
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's GGUF file with merges across usual splits: numbers, names."""
    folder = tmp_path_factory.mktemp("tokenizers")
    write_byte_level(tiny_model("llama", folder / "base", layers=1, **SIZES), "gpt-2", size=700)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=folder)
    return gptailor.compile(plan, folder / "out.gguf").folder


def split_as(name: str, compiled: Path, file: Path) -> Path:
    """The same file; llama.cpp's pattern of that name splits its texts first."""
    writer = gguf.GGUFWriter(file, "llama")
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, tuple: writer.add_array}  # fmt: skip
    facts = {**read_gguf(compiled).facts, "tokenizer.ggml.pre": name}
    for key, value in facts.items():
        if key not in {"general.architecture", "general.alignment"}:
            add[type(value)](key, list(value) if isinstance(value, tuple) else value)
    for tensor in gguf.GGUFReader(compiled).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.skipif(not llama_cpp.INSTALLED, reason="the package 'xllamacpp' is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_texts_become_llama_cpps_tokens(name: str, compiled: Path, tmp_path: Path) -> None:
    file = split_as(name, compiled, tmp_path / "m.gguf")
    for each, content in tokenizer_from_gguf(file).items():
        (tmp_path / each).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert llama_cpp.ask(file, texts=TEXTS).tokens == [tokenizer(t).input_ids for t in TEXTS]


def test_an_unknown_pre_tokenizer_is_refused(compiled: Path, tmp_path: Path) -> None:
    file = split_as("gigachat-2", compiled, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="has the pre-tokenizer 'gigachat-2'"):
        tokenizer_from_gguf(file)
