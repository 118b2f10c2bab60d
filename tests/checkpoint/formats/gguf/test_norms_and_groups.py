"""GGUF files with layers that differ from Llama's in more than names, as llama.cpp converts them.

Norms with biases, fused and sorted projections, matrices that the model has transposed, learned
positions, heads rotated in part, multipliers. A tiny model of transformers' is converted as
llama.cpp does it, read again, and held to the model, to transformers' reader and to llama.cpp.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.tensor import Dequantised
from gptailor.program.gguf.vocabulary import vocabulary_facts
from gptailor.program.load import load_tensor
from tests.support import llama_cpp
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, write_byte_level

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

TOKENS = {"vocab_size": 384, "pad_token_id": None, "bos_token_id": 356, "eos_token_id": 358}
SIZES = {
    **TOKENS, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
GPT2 = {**TOKENS, "n_embd": 64, "n_head": 4, "n_positions": 1024}
FALCON = {**TOKENS, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2048}
BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
GRANITE = {
    **SIZES, "attention_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 4.0,
    "residual_multiplier": 0.7,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN_IN_FULL = {**YARN, "attention_factor": 1.1386294, "beta_fast": 32.0, "beta_slow": 1.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "starcoder2": ("starcoder2", "starcoder2", {**SIZES, **BASE}),
    "starcoder2-untied": ("starcoder2", "starcoder2", {**SIZES, "tie_word_embeddings": False}),
    "olmo2": ("olmo2", "olmo2", {**SIZES, **BASE}),
    "olmo2-yarn": ("olmo2", "olmo2", {**SIZES, "rope_parameters": YARN}),
    "olmo3": (
        "olmo2",
        "olmo3",
        {
            **SIZES, "sliding_window": 8,
            "rope_parameters": {"full_attention": YARN_IN_FULL, "sliding_attention": LOCAL},
        },
    ),
    "granite": ("granite", "granite", GRANITE),
    "granite-biased": (
        "granite",
        "granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "command-r": ("command-r", "cohere", {**SIZES, "logit_scale": 0.25}),
    "command-r-plus": ("command-r", "cohere", {**SIZES, **BASE, "use_qk_norm": True}),
    "gpt2": ("gpt2", "gpt2", GPT2),
    "gpt2-untied": ("gpt2", "gpt2", {**GPT2, "tie_word_embeddings": False}),
    "gpt2-short": ("gpt2", "gpt2", {**GPT2, "n_positions": 64, "n_inner": 96}),
    "falcon-7b": ("falcon", "falcon", FALCON),
    "falcon-40b": (
        "falcon",
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon2": (
        "falcon",
        "falcon",
        {
            **FALCON, **BASE, "new_decoder_architecture": True, "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False,
        },
    ),
    "stablelm": ("stablelm", "stablelm", SIZES),
    "stablelm2": ("stablelm", "stablelm", {**SIZES, "use_qkv_bias": True}),
    "stablelm2-12b": (
        "stablelm",
        "stablelm",
        {
            **SIZES, "qk_layernorm": True, "use_parallel_residual": True,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            },
        },
    ),
}  # fmt: skip
"""GGUF's architecture, transformers' model type, and a configuration."""

READ_BY_TRANSFORMERS = {"starcoder2", "gpt2", "falcon-7b", "gpt2-untied", "stablelm", "stablelm2"}
"""It puts Falcon's sorted rows into no groups, and knows no norms of StableLM's heads."""


def converted(arch: str, config: Any, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp's converter writes them."""
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    results: dict[str, np.ndarray] = {}
    norms: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        value = tensor.float().numpy()
        stem, _, end = name.rpartition(".")
        if "layernorm.norms" in stem:
            stem, _, number = stem.replace(".norms", "").rpartition(".")
            norms.setdefault(stem, {})[int(number)] = value
            continue
        if arch == "gpt2" and value.ndim == 2 and stem.endswith(("c_attn", "c_proj", "c_fc")):
            value = value.T
        if arch == "granite" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if stem.endswith("query_key_value"):
            heads, kv = config.num_attention_heads, falcon_kv(config)
            each = value.reshape(kv, heads // kv + 2, -1, value.shape[1])
            parts = each[:, :-2], each[:, -2], each[:, -1]
            value = np.concatenate([part.reshape(-1, value.shape[1]) for part in parts])
        gguf_name = names.get_name(stem) or {"lm_head": "output"}[stem]
        results[f"{gguf_name}.{end}"] = value
    for stem, each in norms.items():
        results[f"{names.get_name(stem)}.weight"] = np.stack([each[n] for n in sorted(each)])
    return results


def falcon_kv(config: Any) -> int:
    return config.num_kv_heads if config.new_decoder_architecture else 1


def facts_of(arch: str, config: Any) -> Iterator[tuple[str, Any]]:
    """Yield a model's metadata as llama.cpp's converter writes it."""
    yield "block_count", config.num_hidden_layers
    yield "context_length", config.max_position_embeddings
    yield "embedding_length", config.hidden_size
    keys = ("intermediate_size", "n_inner")
    wide = [value for key in keys if (value := getattr(config, key, None)) is not None]
    yield "feed_forward_length", wide[0] if wide else 4 * config.hidden_size
    yield "attention.head_count", config.num_attention_heads
    if arch == "falcon":
        yield "tensor_data_layout", "jploski"
        yield "attention.head_count_kv", falcon_kv(config)
    elif arch != "gpt2":
        yield "attention.head_count_kv", config.num_key_value_heads
    if arch in {"granite", "olmo2"}:
        yield "attention.layer_norm_rms_epsilon", config.rms_norm_eps
    else:
        keys = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
        yield (
            "attention.layer_norm_epsilon",
            next(getattr(config, k) for k in keys if hasattr(config, k)),
        )
    yield from rotary_facts(arch, config)
    if config.model_type == "olmo3":
        yield "attention.sliding_window", config.sliding_window
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        yield "attention.sliding_window_pattern", slides
    if arch == "granite":
        yield "attention.scale", config.attention_multiplier
        yield "embedding_scale", config.embedding_multiplier
        yield "residual_scale", config.residual_multiplier
        yield "logit_scale", config.logits_scaling
        yield "vocab_size", config.vocab_size
    if arch == "command-r":
        yield "logit_scale", config.logit_scale
    if arch == "stablelm":
        yield "use_parallel_residual", config.use_parallel_residual


def rotary_facts(arch: str, config: Any) -> Iterator[tuple[str, Any]]:
    if arch == "gpt2":
        return
    rope, head = config.rope_parameters, config.hidden_size // config.num_attention_heads
    if "sliding_attention" in rope:
        yield "rope.freq_base_swa", rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope["rope_theta"] != 1e4 or arch not in {"falcon", "stablelm"}:
        yield "rope.freq_base", float(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        yield "rope.scaling.type", "yarn"
        yield "rope.scaling.factor", rope["factor"]
        yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        factors = {"attn_factor": "attention_factor", "beta_fast": "beta_fast",
                   "beta_slow": "beta_slow"}  # fmt: skip
        for key, name in factors.items():
            yield f"rope.scaling.yarn_{key}", rope.get(name)
    if arch == "command-r":
        yield "rope.scaling.type", "none"
    if arch in {"granite", "stablelm"}:
        yield "rope.dimension_count", int(head * rope.get("partial_rotary_factor", 1.0))


def write(
    file: Path,
    arch: str,
    folder: Path,
    *,
    facts: dict[str, Any] | None = None,
    more: dict[str, np.ndarray | None] | None = None,
    quantised: bool = False,
) -> dict[str, np.ndarray]:
    """Convert a model's folder, with its tokenizer; the tensors as they are in the file.

    `facts` are said and `more` tensors are there instead or besides, or not if they are None.
    """
    config = AutoConfig.from_pretrained(folder)
    written = {f"{arch}.{key}": value for key, value in facts_of(arch, config)}
    written |= {f"{arch}.{key}": value for key, value in (facts or {}).items()}
    files: dict[str, Any] = {each.name: each for each in folder.glob("tokenizer*")}
    written |= vocabulary_facts(files, config.to_dict(), file)[0]
    writer = gguf.GGUFWriter(file, arch)
    for key, value in written.items():
        say(writer, key, value)
    all_ = {**converted(arch, config, load_file(folder / "model.safetensors")), **(more or {})}
    results = {name: np.ascontiguousarray(v) for name, v in all_.items() if v is not None}
    for name, value in results.items():
        if quantised and value.ndim == 2 and "norm" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            raw = gguf.quants.quantize(value, kind)
            writer.add_tensor(name, raw, raw_dtype=kind)
            results[name] = gguf.quants.dequantize(raw, kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return results


def say(writer: Any, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def is_computed_alike(arch: str, file: Path, tmp_path: Path) -> None:
    """Assert that llama.cpp uses the same from a file as transformers after reading it."""
    plan = gptailor.loads(f'tailor 1\nmodel base = "{file}"\n', folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out").folder
    config = AutoConfig.from_pretrained(folder)
    if arch == "falcon":  # llama.cpp approximates its GELU
        config.activation = "gelu_pytorch_tanh"
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT).input_ids[:40]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    # It says no probabilities where it would end, or say half a letter.
    best = logprobs.argmax(-1).tolist()
    ends = [n for n in range(40) if best[n] < 356 and "\ufffd" not in tokenizer.decode([best[n]])]
    ends = [ends[0], ends[len(ends) // 2], ends[-1]]
    prompts = [ids[: n + 1] for n in ends]
    answers = llama_cpp.ask(file, prompts=prompts, vocabulary=384)
    tolerance = 1e-5 if arch not in {"falcon", "gpt2", "starcoder2"} else 2e-3  # float16's GELU
    for ours, theirs in zip(logprobs[ends], answers.logprobs, strict=True):
        logits = torch.tensor(theirs)
        there = logits > -1e30  # a probability that float32 hasn't
        assert there.float().mean() > 0.5
        assert (ours - logits)[there].abs().max() < tolerance * ours.std()


Made = tuple[str, str, Path, dict[str, Tensor]]


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A case, its architecture, a folder with a model and its `m.gguf`, and the model's tensors."""
    root = tmp_path_factory.mktemp(request.param)
    arch, family, settings = MODELS[request.param]
    # llama.cpp knows Command R+ by its layers; of OLMo 3 every fourth has full attention.
    layers = {"command-r-plus": 64, "olmo3": 5}.get(request.param, 3)
    base = write_byte_level(tiny_model(family, root / "base", layers=layers, **settings), "smollm")
    write(root / "m.gguf", arch, base)
    return request.param, arch, root, load_file(base / "model.safetensors")


def test_tensors_are_the_models_own(made: Made) -> None:
    _, _, root, tensors = made
    _, result = open_gguf(root / "m.gguf")
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert result[name].spec.shape == tuple(tensor.shape), name
        assert load_tensor(result[name]).equal(tensor), name


DROPPED_OUT = {"attn_pdrop", "embd_pdrop", "resid_pdrop"}


def test_the_configuration_is_the_models_own(made: Made) -> None:
    case, _, root, _ = made
    result, _ = open_gguf(root / "m.gguf")
    given = {key: value for key, value in result.items() if key != "model_type"}
    ours = AutoConfig.for_model(result["model_type"], **given).to_dict()
    theirs = AutoConfig.from_pretrained(root / "base").to_dict()
    for each in (ours, theirs):  # what becomes of the older keys, and of the files' places
        for key in ("rope_scaling", "rope_theta", "_name_or_path", "transformers_version", "dtype",
                    "partial_rotary_factor", "initializer_range"):  # fmt: skip
            each.pop(key, None)
    if case == "falcon-40b":
        theirs["num_ln_in_parallel_attn"] = 2  # which its class takes where nothing is said
    assert ours == theirs


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_the_compiled_file_computes_the_same_logits_as_the_model(
    made: Made, tmp_path: Path
) -> None:
    _, _, root, _ = made
    ids = torch.arange(3, 43)[None]
    for change in ("", "drop L1"):
        text = 'tailor 1\nmodel base = "{}"\n' + change
        logits = []
        for source in ("m.gguf", "base"):
            plan = gptailor.loads(text.format(f"./{source}"), folder=root)
            out = gptailor.compile(plan, tmp_path / f"{source}-{change}").folder
            model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
            with torch.no_grad():
                logits.append(model(ids).logits)
        assert torch.equal(*logits)
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32).eval()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "m.gguf-", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_transformers_reads_the_same_tensors(made: Made) -> None:
    case, _, root, _ = made
    if case not in READ_BY_TRANSFORMERS:
        pytest.skip("transformers reads no GGUF of these, or reads it otherwise")
    theirs = AutoModelForCausalLM.from_pretrained(root, gguf_file="m.gguf", dtype=torch.float32)
    plan = gptailor.loads('tailor 1\nmodel base = "./m.gguf"\n', folder=root)
    ours = gptailor.stitch(plan).state_dict()
    result = theirs.state_dict()
    assert result.keys() == ours.keys()
    for name, tensor in result.items():
        assert tensor.equal(ours[name]), name


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.skipif(not llama_cpp.INSTALLED, reason="the package 'xllamacpp' is not installed")
def test_llama_cpp_computes_the_logits_of_the_tensors_that_are_read(
    made: Made, tmp_path: Path
) -> None:
    _, arch, root, _ = made
    is_computed_alike(arch, root / "m.gguf", tmp_path)


@pytest.mark.parametrize("case", ["gpt2", "falcon-40b", "stablelm2-12b", "granite-biased"])
def test_quantised_matrices_have_the_models_order_of_rows(case: str, tmp_path: Path) -> None:
    arch, family, settings = MODELS[case]
    base = write_byte_level(tiny_model(family, tmp_path / "base", layers=1, **settings))
    values = write(tmp_path / "m.gguf", arch, base, quantised=True)
    config = AutoConfig.from_pretrained(base)
    _, result = open_gguf(tmp_path / "m.gguf")
    loaded = {name: load_tensor(info) for name, info in result.items()}
    again = converted(arch, config, loaded)
    assert again.keys() == values.keys()
    for name, value in again.items():
        assert np.array_equal(value, values[name]), name
    assert any(isinstance(info.form, Dequantised) for info in result.values())


def rewritten(case: str, tmp_path: Path, **changes: Any) -> Path:
    """A case's file with something said otherwise."""
    arch, family, settings = MODELS[case]
    base = write_byte_level(tiny_model(family, tmp_path / "base", layers=2, **settings))
    write(tmp_path / "m.gguf", arch, base, **changes)
    return tmp_path / "m.gguf"


NORM = np.ones((2, 16), dtype=np.float32)
FEWER = {
    f"blk.{n}.attn_qkv.{kind}": np.ones((128, 64)[:axes], dtype=np.float32)
    for n in range(2)
    for kind, axes in (("weight", 2), ("bias", 1))
}
"""Queries of four heads, keys and values of two."""


@pytest.mark.parametrize(
    ("case", "changes", "why"),
    [
        ("granite", {"facts": {"rope.scaling.finetuned": False}}, "has no rotary embeddings"),
        ("granite", {"facts": {"logit_scale": None}}, "'granite.logit_scale' is None"),
        (
            "granite",
            {"facts": {"attention.key_length": 32, "rope.dimension_count": 32}},
            "4 heads of 32 and hidden states of 64",
        ),
        ("granite", {"facts": {"rope.dimension_count": 8}}, "'granite.rope.dimension_count' is 8"),
        ("falcon-7b", {"facts": {"tensor_data_layout": "other"}}, "lays out .* by 'other'"),
        ("falcon2", {"facts": {"rope.freq_base": None}}, "without the base"),
        ("falcon-40b", {"more": {"blk.1.attn_norm_2.bias": None}}, "'blk.1.attn_norm_2.bias'"),
        ("olmo2-yarn", {"facts": {"rope.scaling.yarn_ext_factor": 0.5}}, "ext_factor' isn't 1"),
        (
            "olmo2-yarn",
            {"facts": {"rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.attn_factor": 1.0}},
            "has two factors of attention",
        ),
        ("granite", {"facts": {"attention.head_count_kv": [2, 4]}}, "head_count_kv' is"),
        ("command-r", {"more": {"output.weight": NORM}}, "'output.weight'"),
        ("command-r", {"more": {"blk.0.attn_k_norm.weight": NORM}}, "'blk.0.attn_q_norm.weight'"),
        ("command-r", {"facts": {"logit_scale": 0.0}}, "expected a positive number"),
        ("stablelm", {"facts": {"rope.dimension_count": 5}}, "rope.dimension_count' is 5"),
        ("stablelm", {"facts": {"rope.dimension_count": 18}}, "rope.dimension_count' is 18"),
        ("stablelm2", {"more": {"blk.0.attn_v.bias": None}}, "attn_k and attn_q of its first"),
        ("gpt2", {"facts": {"attention.head_count_kv": 2}, "more": FEWER}, "4 heads with 2"),
        ("gpt2", {"facts": {"context_length": 63}}, "'position_embd.weight' has the shape"),
        ("gpt2", {"facts": {"rope.freq_base": 1e4}}, "'gpt2.rope.freq_base'"),
        ("gpt2", {"more": {"output_norm.bias": None}}, "has no tensor 'output_norm.bias'"),
        ("starcoder2", {"more": {"blk.0.ffn_up.bias": None}}, "'starcoder2' can't have"),
        ("starcoder2", {"facts": {"attention.layer_norm_rms_epsilon": 1e-5}}, "rms_epsilon'"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(
    case: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    file = rewritten(case, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=why) as caught:
        open_gguf(file)
    assert caught.value.code == "C109"


def test_a_granite_without_scales_has_the_scales_of_llama_cpp(tmp_path: Path) -> None:
    unsaid = dict.fromkeys(("attention.scale", "embedding_scale", "residual_scale"))
    config, _ = open_gguf(rewritten("granite", tmp_path, facts=unsaid))
    assert config["attention_multiplier"] == 0.25  # the root of 1/16
    assert config["embedding_multiplier"] == config["residual_multiplier"] == 1.0


@pytest.mark.slow
@pytest.mark.llamacpp
@pytest.mark.skipif(not llama_cpp.INSTALLED, reason="the package 'xllamacpp' is not installed")
def test_llama_cpp_multiplies_the_usual_factor_of_attention(tmp_path: Path) -> None:
    file = rewritten("olmo2-yarn", tmp_path, facts={"rope.scaling.attn_factor": 1.5})
    usual = YARN_IN_FULL["attention_factor"]
    read = open_gguf(file)[0]["rope_parameters"]["attention_factor"]
    assert read == pytest.approx(1.5 * usual)
    is_computed_alike("olmo2", file, tmp_path)


def test_a_granite_4_without_state_space_layers_is_a_granite(tmp_path: Path) -> None:
    """Two matrices of its branches are one matrix in transformers, and two in llama.cpp."""
    settings = {
        **GRANITE, "layer_types": ["full_attention"] * 2, "num_local_experts": 0,
        "shared_intermediate_size": 96, "position_embedding_type": "rope",
        "mamba_n_heads": 8, "mamba_d_head": 16,
    }  # fmt: skip
    base = tiny_model("granitemoehybrid", tmp_path / "base", layers=2, **settings)
    hybrid = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    named: dict[str, Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        wide = tensor.chunk(2) if "input_linear" in name else (tensor,)
        inner = name.replace("shared_mlp.output_linear", "mlp.down_proj")
        for part, key in zip(wide, ("gate_proj", "up_proj"), strict=False):
            named[inner.replace("shared_mlp.input_linear", f"mlp.{key}")] = part.contiguous()
    same = write_byte_level(tiny_model("granite", tmp_path / "same", layers=2, **GRANITE))
    save_file(named, same / "model.safetensors", {"format": "pt"})
    # The state-space layers that it hasn't are said all the same, and heads in a list.
    stated: dict[str, Any] = dict.fromkeys(("ssm.conv_kernel", "ssm.state_size"), 4)
    stated |= {"ssm.group_count": 1, "ssm.inner_size": 128, "ssm.time_step_rank": 8}
    stated |= {"rope.scaling.finetuned": True, "attention.head_count_kv": [2, 2]}
    write(tmp_path / "m.gguf", "granite", same, facts=stated)
    read = gptailor.stitch(gptailor.loads('tailor 1\nmodel base = "./m.gguf"', folder=tmp_path))
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        ours, theirs = read(ids).logits, hybrid(ids).logits
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    if llama_cpp.INSTALLED:
        is_computed_alike("granite", tmp_path / "m.gguf", tmp_path)
