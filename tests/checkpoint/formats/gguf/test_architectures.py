"""GGUF files of each architecture: a model of transformers', written as llama.cpp converts it.

Names come from the package `gguf`; the converter's changes of values (rows permuted, 1 added to
norms, experts stacked) and its facts in the file are made here again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.tensor import Dequantised, TensorInfo, TensorSpec
from gptailor.program.load import load_tensor
from tests.support.tiny import tiny_model
from tests.support.vocabularies import write_byte_level

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80,
}  # fmt: skip
GEMMA = {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
EXPERTS = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {**SIZES, "head_dim": 32}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {**SIZES, "sliding_window": 40}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4}),
    "qwen2moe": (
        "qwen2_moe",
        {**EXPERTS, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    ),
    "qwen3moe": (
        "qwen3_moe",
        {**EXPERTS, "moe_intermediate_size": 768, "head_dim": 16, "norm_topk_prob": True},
    ),
}
"""By GGUF's architecture, but for Mixtral, which is `llama` there.

Experts are as wide as transformers takes them to be, because it doesn't read how wide they are.
"""


def converted(
    architecture: str, model: Any, tensors: dict[str, Tensor], *, squeezed: bool
) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp has them, by its names; a matrix of one row is a list, or isn't."""
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    results: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        value = tensor.float().numpy()
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            number, _, rest = after.partition(".")
            experts.setdefault(f"{before}.experts.{rest}", {})[int(number)] = value
            continue
        if squeezed and "shared_expert_gate" in name:
            value = value[0]
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": 2}
        for key, count in heads.items():
            if architecture == "llama" and key in name:
                halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
                value = halves.swapaxes(1, 2).reshape(value.shape)
        stem, _, end = name.rpartition(".")
        results[f"{names.get_name(stem)}.{end}"] = value
    for name, each in experts.items():
        stem, _, end = name.rpartition(".")
        results[f"{names.get_name(stem)}.{end}"] = np.stack([each[n] for n in sorted(each)])
    return results


def write(
    file: Path,
    architecture: str,
    folder: Path,
    *,
    squeezed: bool = True,
    pattern: int | list[bool] | None = None,
) -> dict[str, Tensor]:
    """Convert a model's folder; its tensors."""
    kind = "llama" if architecture == "mixtral" else architecture
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(file, kind)
    say_sizes(writer, kind, model.config)
    say_more(writer, architecture, model.config)
    if pattern is not None:
        writer.add_sliding_window_pattern(pattern)
    tokens = ["<pad>", "<s>", "</s>", *(f"<{n}>" for n in range(model.config.vocab_size - 3))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3] * len(tokens))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, value in converted(kind, model, tensors, squeezed=squeezed).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def say_sizes(writer: Any, kind: str, config: Any) -> None:
    """Write the metadata of all architectures."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind.startswith("gemma") or kind == "qwen3moe":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if kind == "gemma3":
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    elif not kind.startswith("gemma"):
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def say_more(writer: Any, architecture: str, config: Any) -> None:
    """Write the metadata of some architectures."""
    if architecture in {"gemma2", "gemma3", "phi3"}:
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "mixtral":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture in {"qwen2moe", "qwen3moe"}:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


@pytest.fixture(scope="module", params=MODELS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Tensor]]:
    """An architecture, a folder with a model and its `m.gguf`, and the model's tensors."""
    root = tmp_path_factory.mktemp(request.param)
    family, settings = MODELS[request.param]
    tiny_model(family, root / "base", layers=7 if family == "gemma3_text" else 2, **settings)
    return request.param, root, write(root / "m.gguf", request.param, root / "base")


def test_tensors_are_the_models_own(made: tuple[str, Path, dict[str, Tensor]]) -> None:
    architecture, root, tensors = made
    _, result = open_gguf(root / "m.gguf")
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        value = load_tensor(result[name])
        shifted = architecture.startswith("gemma") and name.endswith("norm.weight")
        assert value.shape == tensor.shape, name
        assert torch.allclose(value, tensor, rtol=0, atol=2e-7 if shifted else 0.0), name


SLIDES = [True, False, True, True, False, True, True]


@pytest.mark.parametrize(
    ("stated", "slides"),
    [(None, [True] * 5 + [False, True]), (2, [True, False] * 3 + [True]), (SLIDES, SLIDES)],
)
def test_sliding_layers_follow_the_file(
    stated: int | list[bool] | None, slides: list[bool], tmp_path: Path
) -> None:
    tiny_model("gemma3_text", tmp_path / "base", layers=7, **GEMMA)
    write(tmp_path / "m.gguf", "gemma3", tmp_path / "base", pattern=stated)
    config, _ = open_gguf(tmp_path / "m.gguf")
    assert [kind == "sliding_attention" for kind in config["layer_types"]] == slides


def test_a_list_for_other_layers_is_refused(tmp_path: Path) -> None:
    tiny_model("gemma3_text", tmp_path / "base", layers=7, **GEMMA)
    write(tmp_path / "m.gguf", "gemma3", tmp_path / "base", pattern=[True, False])
    with pytest.raises(CheckpointError, match="expected a list of 7 booleans"):
        open_gguf(tmp_path / "m.gguf")


def test_layers_of_phi_4_do_not_slide(tmp_path: Path) -> None:
    tiny_model("phi3", tmp_path / "base", layers=2, **{**SIZES, "sliding_window": None})
    write(tmp_path / "m.gguf", "phi3", tmp_path / "base")
    config, _ = open_gguf(tmp_path / "m.gguf")
    assert config["sliding_window"] is None


def test_a_matrix_of_one_row_may_be_a_matrix(
    made: tuple[str, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    architecture, root, _ = made
    if architecture != "qwen2moe":
        pytest.skip("none of its matrices has one row")
    tensors = write(tmp_path / "m.gguf", architecture, root / "base", squeezed=False)
    _, result = open_gguf(tmp_path / "m.gguf")
    name = "model.layers.1.mlp.shared_expert_gate.weight"
    assert load_tensor(result[name]).equal(tensors[name])


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_the_compiled_file_computes_the_same_logits_as_the_model(
    made: tuple[str, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    _, root, _ = made
    plan = gptailor.loads('tailor 1\nmodel base = "./m.gguf"\n', folder=root)
    live = gptailor.stitch(plan)
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        ours, theirs = live(ids).logits, model(ids).logits
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    for key in ("model_type", "layer_types", "sliding_window", "rope_parameters",
                "norm_topk_prob", "num_experts_per_tok"):  # fmt: skip
        assert getattr(live.config, key, None) == getattr(model.config, key, None), key


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_transformers_reads_the_same_tensors(made: tuple[str, Path, dict[str, Tensor]]) -> None:
    architecture, root, _ = made
    if architecture in {"gemma", "mixtral"}:
        pytest.skip("transformers reads no GGUF of these")
    theirs = AutoModelForCausalLM.from_pretrained(root, gguf_file="m.gguf", dtype=torch.float32)
    plan = gptailor.loads('tailor 1\nmodel base = "./m.gguf"\n', folder=root)
    ours = gptailor.stitch(plan).state_dict()
    result = theirs.state_dict()
    assert result.keys() == ours.keys()
    for name, tensor in result.items():
        assert tensor.equal(ours[name]), name


@pytest.mark.parametrize("kind", sorted(k for k, v in KINDS.items() if "_K" in k and not v.plain))
def test_k_quants_equal_the_result_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers.integrations.gguf import dequant

    number = int(gguf.GGMLQuantizationType[kind])
    if number not in dequant.GGML_BLOCK:
        pytest.skip(f"transformers reads no {kind}")
    drawn = torch.Generator().manual_seed(0)
    each = KINDS[kind]
    blocks = torch.randint(0, 256, (8, each.bytes), generator=drawn).to(torch.uint8)
    blocks[:, -4:] = 0x20  # some blocks have half-precision scales here, which mustn't be NaN
    blocks[:, :4] = 0x20
    (tmp_path / "m").write_bytes(blocks.numpy().tobytes())
    spec = TensorSpec("m", "F32", (4, 2 * each.block))
    ours = load_tensor(TensorInfo(spec, tmp_path / "m", 0, Dequantised(kind)))
    theirs = dequant.dequantize(blocks.reshape(-1), number).reshape(spec.shape)
    assert torch.isfinite(ours).all()
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)


ROUND: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {**GEMMA, "vocab_size": 384},
    "gemma3_text": {**GEMMA, "vocab_size": 384},
}
"""Families that are written as GGUF files too."""


@pytest.mark.parametrize("family", ROUND)
def test_a_written_file_is_read_back(family: str, tmp_path: Path) -> None:
    settings = {**SIZES, "pad_token_id": None, "bos_token_id": 356, "eos_token_id": 358}
    settings |= {"vocab_size": 384, **ROUND[family]}
    write_byte_level(tiny_model(family, tmp_path / "base", layers=7, **settings))
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L6', folder=tmp_path)
    gptailor.compile(plan, tmp_path / "m.gguf")
    read = gptailor.stitch(gptailor.loads('tailor 1\nmodel base = "./m.gguf"\n', folder=tmp_path))
    cut = gptailor.stitch(plan)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        ours, theirs = read(ids).logits, cut(ids).logits
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert read.state_dict().keys() == cut.state_dict().keys()
