"""The types of tensors in a file of a type: those that llama-quantize chooses."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES
from gptailor.program.gguf.tensors import matrix_types, type_of_rows

GOLDEN = Path(__file__).parents[2] / "golden" / "gguf_types.json"
"""The types that llama.cpp's `llama_model_quantize` chose in a dry run, for models of these sizes.

Version 0.25.3 of ggml, with an importance matrix b11739 of llama.cpp. For each type of file: each
type of matrices but the most frequent, with the matrices and their layers. With an importance
matrix only the types of files that differ are listed.
"""
HEADS = 4
MODELS: dict[str, dict[str, Any]] = {
    "llama 32": {"layers": 32},
    "llama 30 tied": {"layers": 30, "tied": True},
    "llama 7": {"layers": 7},
    "llama 17, values shared by 4": {"layers": 17, "kv": 1},
    "llama 80": {"layers": 80},
    "llama 80, values unshared": {"layers": 80, "kv": 4},
    "qwen2 80": {"layers": 80, "kv": 4, "architecture": "qwen2"},
    "gemma 18": {"layers": 18, "tied": True, "architecture": "gemma"},
    "llama 24, MLP of 288": {"layers": 24, "inner": 288},
    "llama 24, stream of 288": {"layers": 24, "width": 288},
}


def mix(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """The matrices of each type but the most frequent, with their layers."""
    (most, _), *_ = Counter(kinds.values()).most_common(1)
    layers: defaultdict[str, defaultdict[str, list[int]]]
    layers = defaultdict(lambda: defaultdict(list))
    for name, kind in kinds.items():
        _, number, part = name.split(".", 2) if name.startswith("blk.") else ("", "-1", name)
        if kind != most:
            layers[kind][part].append(int(number))
    results = {
        kind: sorted(" ".join([part, *(str(n) for n in sorted(numbers) if n >= 0)])
                     for part, numbers in parts.items())
        for kind, parts in sorted(layers.items())
    }  # fmt: skip
    return {"most": [most], **results}


def rows_of(
    *,
    layers: int,
    tied: bool = False,
    kv: int = 2,
    inner: int = 512,
    width: int = 256,
    architecture: str = "llama",
) -> tuple[str, dict[str, Any], dict[str, int]]:
    """An architecture, its facts, and the rows of its matrices."""
    facts = {"block_count": layers, "attention.head_count": HEADS, "attention.head_count_kv": kv}
    rows = {"token_embd": width, **({} if tied else {"output": width})}
    for layer in range(layers):
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), width)
        parts |= {"attn_output": 256, "ffn_down": inner}
        rows |= {f"blk.{layer}.{part}": row for part, row in parts.items()}
    return (
        architecture,
        {f"{architecture}.{key}": value for key, value in facts.items()},
        {f"{name}.weight": row for name, row in rows.items()},
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_matrices_have_the_types_that_llama_quantize_chooses(model: str, *, weighted: bool) -> None:
    architecture, facts, rows = rows_of(**MODELS[model])
    every = json.loads(GOLDEN.read_text())
    golden = every[model]
    assert golden.keys() == {kind for kind in FILE_TYPES if FILE_TYPES[kind].kind not in PLAIN}
    golden |= every[f"{model}, with an importance matrix"] if weighted else {}
    for file_type, wanted in golden.items():
        types = matrix_types(file_type, architecture, facts, rows, weighted=weighted)
        kinds = {name: type_of_rows(kind, rows[name]) or "" for name, kind in types.items()}
        assert mix(kinds) == wanted, file_type


PLAIN = {"F32", "F16", "BF16"}


@pytest.mark.parametrize("file_type", sorted(PLAIN))
def test_a_plain_type_is_that_of_all_matrices(file_type: str) -> None:
    assert set(matrix_types(file_type, *rows_of(layers=4)).values()) == {file_type}


def test_rows_that_fit_no_blocks_have_no_type() -> None:
    assert type_of_rows("Q4_K", 512) == "Q4_K"
    assert type_of_rows("Q4_K", 544) == "Q5_0"
    assert type_of_rows("Q4_K", 528) is None
    assert type_of_rows("IQ4_NL", 40) is None
