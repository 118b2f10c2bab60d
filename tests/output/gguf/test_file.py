"""GGUF files as outputs: their contents, how they are locked and verified, refusals."""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.formats.gguf.header import PLAN_KEY, read_gguf
from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, KINDS, quantised_kind
from gptailor.checkpoint.tokenizer_settings import NAMED_TEMPLATES
from gptailor.cli import main as cli
from gptailor.evaluation.gguf_contents import facts_size, gguf_size, padded
from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf
from gptailor.output import compile as compile_module
from gptailor.output.gguf import values as gguf_values
from gptailor.output.gguf.file import LOCK_KEY, GgufFile, held
from gptailor.plan.events import BytesDone, ignore_events
from gptailor.plan.faults import PlanError
from gptailor.prepare import prepare
from gptailor.program.load import load_tensor
from tests.support.preloaded import Preloaded
from tests.support.tiny import tiny_model, write_tokenizer
from tests.support.tiny_bytes import FAMILIES, SIZES, model
from tests.support.vocabularies import TEMPLATE, TEXT, write_byte_level, write_pieces

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

from gptailor.output.gguf.quantise import quantised  # noqa: E402


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model and a plan that cuts it."""
    model(tmp_path / "base", layers=4)
    (tmp_path / "p.tailor").write_text('tailor 1\nmodel base = "./base"  # ours\ndrop L1\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(here: Path, name: str = "out.gguf", **how: Any) -> Path:
    return gptailor.compile(gptailor.load("p.tailor"), here / name, **how).folder


def refused(code: str, make: Callable[[], object]) -> CheckpointError:
    """Return the error of a refusal, which adds and removes no file."""
    before = sorted(Path().iterdir())
    with pytest.raises(CheckpointError) as caught:
        make()
    assert caught.value.code == code, caught.value
    assert sorted(Path().iterdir()) == before
    return caught.value


# ------------------------------------------------------------------------------------ contents


INNER = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip


def expected(folder: Path, family: str) -> dict[str, np.ndarray]:
    """A folder's tensors as llama.cpp wants them, by Hugging Face's names."""
    config = json.loads((folder / "config.json").read_text())
    heads = {"q_proj": 4, "k_proj": 2}
    results = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        value = tensor.float().numpy()
        if family.startswith("gemma") and name.endswith("norm.weight"):
            value = value + np.float32(1)
        if family in {"llama", "mistral"} and (key := name.split(".")[-2]) in heads:
            rows = value.reshape(heads[key], 2, value.shape[0] // heads[key] // 2, -1)
            value = rows.swapaxes(1, 2).reshape(value.shape)
        results[name] = value
    assert config["num_hidden_layers"] == len({n.split(".")[2] for n in results if ".layers." in n})
    return results


def read(file: Path, family: str) -> dict[str, Any]:
    """A GGUF file's tensors by llama.cpp's own reader, by Hugging Face's names."""
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(kind, 8)
    stems = {}
    for stem in (f"model.layers.{i}.{inner}" for i in range(8) for inner in INNER):
        stems[names.get_name(stem)] = stem
    rest = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    results = {}
    for tensor in gguf.GGUFReader(file).tensors:
        stem, _, end = tensor.name.rpartition(".")
        results[f"{rest.get(stem) or stems[stem]}.{end}"] = tensor
    return results


def values(tensor: Any) -> np.ndarray:
    shape = tuple(reversed(tensor.shape.tolist()))
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_folders_in_llama_cpps_names_and_order(tmp_path: Path, family: str) -> None:
    base = model(tmp_path / "base", family)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\nscale L1 by 0.9\n', folder=tmp_path)
    if family.startswith("gemma"):
        plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out").folder
    file = gptailor.compile(plan, tmp_path / "out.gguf").folder
    wanted, result = expected(folder, family), read(file, family)
    assert result.keys() == wanted.keys()
    for name, tensor in result.items():
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(values(tensor), wanted[name], err_msg=name)
    assert base.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_file_is_read_as_the_folder(tmp_path: Path, family: str) -> None:
    model(tmp_path / "base", family)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    folder = open_checkpoint(gptailor.compile(plan, tmp_path / "out").folder)
    again = open_checkpoint(gptailor.compile(plan, tmp_path / "out.gguf").folder)
    assert again.tensors.keys() == folder.tensors.keys()
    for name, tensor in folder.tensors.items():
        ours = load_tensor(again.tensors[name])
        assert torch.allclose(ours, load_tensor(tensor), rtol=0, atol=2e-7), name
    for key in ("hidden_size", "num_hidden_layers", "rms_norm_eps", "vocab_size"):
        assert again.config[key] == folder.config[key]


@pytest.mark.parametrize(
    ("config", "types"),
    [
        ({"final_logit_softcapping": 30.0}, ["sliding_attention"] * 3),
        ({"layer_types": ["full_attention"] * 3}, ["full_attention"] * 3),
    ],
)
def test_each_gemma_3_that_is_written_is_read(
    tmp_path: Path, config: dict[str, Any], types: list[str]
) -> None:
    model(tmp_path / "base", "gemma3_text", **config)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    again = open_checkpoint(gptailor.compile(plan, tmp_path / "out.gguf").folder).config
    assert again.get("final_logit_softcapping") == config.get("final_logit_softcapping")
    assert again["layer_types"] == types
    gptailor.compile(
        gptailor.loads('tailor 1\nmodel base = "./out.gguf"\ndrop L1\n', folder=tmp_path),
        tmp_path / "cut.gguf",
    )


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> gptailor.Plan:
    """A plan that cuts a model; its quantised files are compared with its folder."""
    folder = tmp_path_factory.mktemp("cut")
    model(folder / "base", layers=4)
    return gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1\n', folder=folder)


@pytest.fixture(scope="module")
def wanted(cut: gptailor.Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The tensors of its folder."""
    return expected(gptailor.compile(cut, tmp_path_factory.mktemp("made") / "out").folder, "llama")


@pytest.mark.parametrize("quantize", FILE_TYPES)
def test_quantised_matrices_are_those_of_llama_cpps_package(
    cut: gptailor.Plan, wanted: dict[str, np.ndarray], tmp_path: Path, quantize: str
) -> None:
    file = gptailor.compile(cut, tmp_path / "out.gguf", quantize=quantize.lower()).folder
    for name, tensor in read(file, "llama").items():
        kind = tensor.tensor_type.name
        if wanted[name].ndim == 1:
            assert kind == "F32", name
        elif FILE_TYPES[quantize].kind in {"F32", "F16", "BF16", "Q8_0"}:
            assert kind == quantize, name
        elif name == "lm_head.weight":
            assert kind == "Q8_0"  # its rows aren't whole blocks of Q6_K
        raw = quantised(wanted[name].reshape(-1), KINDS[kind])
        found_bytes = tensor.data.reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(found_bytes, raw.reshape(-1), err_msg=name)
    assert read_gguf(file).facts["general.file_type"] == FILE_TYPES[quantize].number
    assert size_of(cut, quantize) == file.stat().st_size


def size_of(plan: gptailor.Plan, quantize: str) -> int:
    """The size of a plan's file, known before it is written."""
    prepared = prepare(plan)
    return gguf_size(prepared.checked, prepared.compiled, quantize.upper())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_has_one_known_size_under_any_name(tmp_path: Path, family: str) -> None:
    model(tmp_path / "base", family, layers=4)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    text = 'tailor 1\n# ours\nmodel base = "./base"\nlet part = 0.5\nscale L1 by part\n'
    plan = gptailor.loads(text, folder=tmp_path)
    size = size_of(plan, "q5_0")
    (tmp_path / "a" / "much" / "deeper").mkdir(parents=True)
    for name in ("o.gguf", "a/much/deeper/and a much longer name, as people give them.gguf"):
        written = gptailor.compile(plan, tmp_path / name, quantize="q5_0")
        assert (written.folder.stat().st_size, written.size) == (size, size)


def test_the_tokenizer_of_a_file_counts_in_its_size(tmp_path: Path) -> None:
    sizes = {}
    for name in ("bytes", "pieces", "template"):
        base = model(tmp_path / name, vocab_size=700)
        if name == "pieces":
            write_pieces(base)
        template = 'chat_template "chatml"\n' if name == "template" else ""
        text = f'tailor 1\nmodel base = "./{name}"\n{template}'
        plan = gptailor.loads(text, folder=tmp_path)
        sizes[name] = size_of(plan, "q8_0")
        file = gptailor.compile(plan, tmp_path / f"{name}.gguf", quantize="q8_0").folder
        assert file.stat().st_size == sizes[name], name
        again = gptailor.loads(f'tailor 1\nmodel base = "{file}"\n')
        copy = gptailor.compile(again, tmp_path / "copy.gguf", quantize="q8_0", force=True).folder
        assert copy.stat().st_size == size_of(again, "q8_0"), name
    assert len({*sizes.values()}) == 3
    write_pieces(tmp_path / "bytes")  # the same name, and another tokenizer
    plan = gptailor.loads('tailor 1\nmodel base = "./bytes"\n', folder=tmp_path)
    assert size_of(plan, "q8_0") == sizes["pieces"]


@pytest.mark.parametrize("length", [3, 8_000, 9_000, 32_600, 32_768, 60_000])
def test_facts_about_a_file_take_the_room_of_their_plan(length: int) -> None:
    plan = "x" * min(length, 9_000)  # a longer text has comments, which its normal form hasn't
    facts = padded({"general.name": "o", PLAN_KEY: "x" * length}, plan)
    taken = facts_size(facts)
    assert taken % 2**14 == 0
    assert (taken == facts_size(padded({}, plan))) == (length < 32_700)
    assert length < taken < length + 2**15


def test_long_rows_have_long_blocks(tmp_path: Path) -> None:
    base = model(tmp_path / "base", hidden_size=256, intermediate_size=512, head_dim=64)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    file = gptailor.compile(plan, tmp_path / "out.gguf", quantize="q3_k_m")
    assert file.notes == ()
    result = read(file.folder, "llama")
    kinds = {name: tensor.tensor_type.name for name, tensor in result.items()}
    assert kinds["lm_head.weight"] == "Q6_K"
    assert kinds["model.embed_tokens.weight"] == "Q3_K"
    assert kinds["model.layers.0.self_attn.v_proj.weight"] == "Q5_K"
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "Q4_K"
    wanted = expected(base, "llama")
    for name, tensor in result.items():
        raw = quantised(wanted[name].reshape(-1), KINDS[kinds[name]])
        found_bytes = tensor.data.reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(found_bytes, raw.reshape(-1), err_msg=name)


def test_a_tensor_is_converted_in_pieces_as_it_is_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compiled(here, "whole.gguf", quantize="q4_1").read_bytes()
    monkeypatch.setattr(gguf_values, "_AT_ONCE", 100)
    pieces = compiled(
        here, "whole.gguf", quantize="q4_1", force=True, compute=gptailor.ComputeOptions(threads=1)
    ).read_bytes()
    assert pieces == whole


def test_rows_that_arent_whole_long_blocks_have_short_ones_and_a_note_reports_it(
    here: Path,
) -> None:
    written = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf", quantize="q4_k_m")
    (note,) = written.notes
    assert note.startswith("tensors with rows that aren't whole blocks of 256 entries: ")
    assert note.endswith("Q5_0 instead of Q4_K and 2 Q8_0 instead of Q6_K")


def test_rows_that_arent_whole_blocks_keep_the_plans_dtype_and_this_is_reported(
    tmp_path: Path,
) -> None:
    base = model(tmp_path / "base", intermediate_size=72, dtype="bfloat16")
    plan = gptailor.loads(f'tailor 1\nmodel base = "{base}"\n')
    written = gptailor.compile(plan, tmp_path / "out.gguf", quantize="q8_0")
    (note,) = written.notes
    assert note.startswith("3 tensors keep the plan's dtype instead of Q8_0")
    assert "'model.layers.0.mlp.down_proj.weight'" in note
    kinds = {n: t.spec.dtype for n, t in read_gguf(written.folder).tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "BF16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_metadata_names_the_model_and_its_sources(here: Path) -> None:
    (here / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Ours\n")
    written = gptailor.compile(gptailor.load("p.tailor"), here / "mine.gguf", quantize="q8_0")
    header = read_gguf(written.folder)
    facts = header.facts
    assert (written.layers, written.size) == (3, written.folder.stat().st_size)
    expected = {
        "general.architecture": "llama", "general.name": "mine", "general.file_type": 7,
        "general.license": "apache-2.0", "llama.block_count": 3, "llama.embedding_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32, "llama.rope.dimension_count": 32,
        "llama.context_length": 128, "llama.vocab_size": 384,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 356, "tokenizer.ggml.eos_token_id": 358,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    plan = gptailor.loads(str(facts[PLAN_KEY]), folder=here)
    assert plan == gptailor.load("p.tailor").model_copy(update={"dtype": "float32"})
    assert 'model base = "./base"  # ours' in str(facts[PLAN_KEY])
    assert "sha256" in str(facts["general.description"])
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert isinstance(tokens, tuple)
    assert isinstance(kinds, tuple)
    assert tokens[356:362] == (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "[PAD360]", "[PAD361]",
    )  # fmt: skip
    assert (len(tokens), kinds[0], kinds[356:361]) == (384, 1, (3, 3, 3, 4, 5))


def test_a_union_and_a_chat_template_are_in_the_file(tmp_path: Path) -> None:
    for name in ("base", "chat"):
        model(tmp_path / name, layers=1)
    path = tmp_path / "chat" / "tokenizer.json"
    document = json.loads(path.read_text())
    added = document["added_tokens"]
    added.append({**added[0], "content": "<extra>", "id": 360, "special": False})
    path.write_text(json.dumps(document))
    head = "".join(f'model {name} = "{tmp_path / name}"\n' for name in ("base", "chat"))
    text = f'tailor 1\n{head}tokenizer union\nchat_template "chatml"\n'
    facts = read_gguf(gptailor.compile(gptailor.loads(text), tmp_path / "out.gguf").folder).facts
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert isinstance(tokens, tuple)
    assert isinstance(kinds, tuple)
    assert tokens[356:] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "<extra>")
    assert kinds[356:] == (3, 3, 3, 4, 4)
    assert facts["tokenizer.chat_template"] == NAMED_TEMPLATES["chatml"]
    assert facts["llama.vocab_size"] == 361


def test_the_models_of_the_hub_are_named(here: Path) -> None:
    plan = gptailor.loads('tailor 1\nmodel base = "someone/a-model"\n')
    written = gptailor.compile(plan, here / "out.gguf", models={"base": here / "base"})
    facts = read_gguf(written.folder).facts
    assert "general.base_model.count" not in facts  # it was another place's


def test_a_lock_holds_wherever_a_model_of_the_hub_is_read(here: Path) -> None:
    facts = dict(read_gguf(compiled(here)).facts)
    parent = {"general.base_model.count": 1, "general.base_model.0.name": "a-model"}
    assert held(facts | parent) == held(facts)
    assert held(facts | {"general.type": "other"}) != held(facts)


def test_a_gguf_file_has_a_tokenizer_for_a_template(here: Path) -> None:
    file = compiled(here, "base.gguf")
    text = f'tailor 1\nmodel base = "{file}"\nchat_template "chatml"\n'
    out = gptailor.compile(gptailor.loads(text), here / "out").folder
    assert (out / "chat_template.jinja").read_text() == NAMED_TEMPLATES["chatml"]
    assert (out / "tokenizer.json").is_file()


def test_llama_3s_frequencies_are_a_tensor(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    base = model(tmp_path / "base", rope_parameters=rope, max_position_embeddings=16384)
    file = gptailor.compile(gptailor.loads(f'tailor 1\nmodel base = "{base}"\n'),
                            tmp_path / "out.gguf").folder  # fmt: skip
    assert open_checkpoint(file).config["rope_parameters"] == rope


def test_context_ends_with_a_window_that_llama_cpp_has_not(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "mistral", sliding_window=48)
    plan = gptailor.loads(f'tailor 1\nmodel base = "{base}"\n')
    written = gptailor.compile(plan, tmp_path / "out.gguf")
    assert read_gguf(written.folder).facts["llama.context_length"] == 48
    assert written.notes == (
        "the context is cut from 128 to the window's 48 tokens: "
        "llama.cpp's 'llama' has no such windows in its layers",
    )


# ---------------------------------------------------------------------------------- lock and verify


def flipped(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def test_a_locked_file_is_verified_and_holds_its_lock(here: Path) -> None:
    written = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf",
                               locking=True, quantize="q8_0")  # fmt: skip
    assert written.lock is not None
    assert written.lock.gguf is not None
    assert written.size == written.folder.stat().st_size
    within = json.loads(str(read_gguf(written.folder).facts[LOCK_KEY]))
    assert within["gguf"]["quantize"] == "Q8_0"
    assert within["tensors"] == json.loads(written.lock.text())["tensors"]
    folder = gptailor.compile(gptailor.load("p.tailor"), here / "out", locking=True)
    assert folder.lock is not None
    assert folder.lock.tensors == written.lock.tensors  # of the program, whatever it becomes
    result = gptailor.verify("out.gguf")
    assert result.result == "verified", (result.differences, result.unverified)
    count = len(read_gguf(written.folder).tensors)
    assert f"{count} tensors with the lock" in result.compared
    assert f"{count} tensors with the plan's output" in result.compared


@pytest.mark.parametrize("locking", [True, False])
def test_a_changed_byte_is_reported_with_its_tensor(here: Path, locking: bool) -> None:
    file = compiled(here, locking=locking)
    assert gptailor.verify(file).result == "verified"
    tensor = read_gguf(file).tensors["blk.1.ffn_up.weight"]
    flipped(file, tensor.offset + 5)
    result = gptailor.verify(file)
    assert {difference.name for difference in result.differences} == {"blk.1.ffn_up.weight"}
    only = gptailor.verify(file, tensors_only=True)
    assert only.result == ("differs" if locking else "unverified")


def test_a_changed_setting_is_reported(here: Path) -> None:
    file = compiled(here, locking=True)
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"<tool>", b"<TOOL>"))
    result = gptailor.verify(file)
    assert [difference.name for difference in result.differences] == [
        "metadata",
        "tokenizer.ggml.tokens",
    ]


def test_another_model_is_found(here: Path) -> None:
    file = compiled(here, locking=True)
    tensors = load_file("base/model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    result = gptailor.verify(file)
    assert [difference.kind for difference in result.differences] == ["file"]
    Path("base").rename("away")
    assert gptailor.verify(file).result == "unverified"
    assert gptailor.verify(file, tensors_only=True).result == "verified"


def test_a_file_is_held_to_a_lock(here: Path) -> None:
    first = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf",
                             locking=True, quantize="q8_0")  # fmt: skip
    again = compiled(here, "again.gguf", locked=first.lock, quantize="q8_0")
    assert gptailor.verify(again).result == "verified"
    compiled(here, "folder", locked=first.lock)
    compiled(here, "small.gguf", locked=first.lock, quantize="q4_0")  # the program is as locked
    template = here / "base" / "tokenizer_config.json"
    template.write_text(template.read_text().replace("assistant", "helper"))
    plan = gptailor.load("p.tailor")
    error = refused("C704", lambda: gptailor.compile(plan, "x.gguf", locked=first.lock))
    assert "tokenizer_config.json" in str(error)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_dry_run_refuses_a_differing_lock_as_the_run_does(here: Path, dry_run: bool) -> None:
    plan = gptailor.load("p.tailor")
    lock = gptailor.compile(plan, "out.gguf", locking=True, quantize="q8_0").lock
    assert lock is not None
    assert lock.gguf is not None
    other = lock.model_copy(update={"gguf": lock.gguf.model_copy(update={"facts": "0" * 64})})

    def again() -> None:
        gptailor.compile(plan, "new.gguf", locked=other, quantize="q8_0", dry_run=dry_run)

    assert "metadata" in str(refused("C705", again))
    assert not Path("new.gguf").exists()


def test_a_dry_run_refuses_an_output_that_the_run_would_refuse(here: Path) -> None:
    plan = gptailor.load("p.tailor")
    gptailor.compile(plan, "out.gguf")
    assert gptailor.compile(plan, "out.gguf", dry_run=True).update is not None
    os.utime("out.gguf", ns=(1, 1))
    refused("C301", lambda: gptailor.compile(plan, "out.gguf", dry_run=True))
    planned = gptailor.compile(plan, "out.gguf", dry_run=True, force=True)
    assert planned.size == Path("out.gguf").stat().st_size


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_bridged_tensors_are_compared_by_their_sketches(here: Path, quantize: str | None) -> None:
    Path("text.txt").write_text(TEXT * 4, encoding="utf-8")
    text = 'tailor 1\nmodel base = "./base"\ndrop L1..L2\nbridge on "text.txt" tokens 512\n'
    Path("p.tailor").write_text(text)
    made = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf",
                            locking=True, quantize=quantize)  # fmt: skip
    assert made.lock is not None
    assert made.lock.gguf is not None
    assert made.lock.gguf.tensors["blk.0.ffn_down.weight"].sketch is not None
    result = gptailor.verify("out.gguf")
    assert result.result == "verified", (result.differences, result.unverified)
    tensor = made.lock.gguf.tensors["blk.0.ffn_down.weight"]
    nearly = made.lock.model_copy(
        update={
            "gguf": made.lock.gguf.model_copy(
                update={
                    "tensors": made.lock.gguf.tensors
                    | {"blk.0.ffn_down.weight": tensor.model_copy(update={"sha256": "0" * 64})}
                }
            )
        }
    )
    compiled(here, "again.gguf", locked=nearly, quantize=quantize)  # its sketch is the same
    Path("text.txt").unlink()
    assert gptailor.verify("out.gguf").result == "unverified"


def test_an_invalid_lock_in_the_metadata_is_refused(here: Path) -> None:
    file = compiled(here, locking=True)
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": x'))
    refused("C701", lambda: gptailor.verify(file))


# ----------------------------------------------------------------------------------- all or nothing


@pytest.mark.parametrize("how", ["another plan", "changed"])
def test_a_file_of_somebody_else_is_replaced_by_force_alone(here: Path, how: str) -> None:
    file = compiled(here)
    if how == "another plan":
        Path("p.tailor").rename("other.tailor")
        shutil.copy("other.tailor", "p.tailor")
        gptailor.compile(gptailor.load("other.tailor"), file, force=True)
    else:
        os.utime(file, ns=(1, 1))
    before = file.read_bytes()
    error = refused("C301", lambda: compiled(here, quantize="q8_0"))
    assert ("changed since gptailor wrote it: out.gguf" in str(error)) == (how == "changed")
    assert file.read_bytes() == before
    assert len(compiled(here, quantize="q8_0", force=True).read_bytes()) < len(before)
    assert file.stat().st_nlink == 1


def test_a_file_of_the_same_plan_is_updated(here: Path) -> None:
    plan = gptailor.load("p.tailor")
    first = gptailor.compile(plan, here / "out.gguf", locking=True)
    assert first.update is None
    Path("p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L2\n')
    second = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf", quantize="q8_0")
    assert second.update is not None
    assert second.update.changes == (("+", "L1"), ("−", "L2"))
    assert second.update.computed < second.size, "the lock is no part of it"
    assert second.update.copied == 0
    assert second.update.reused == {}
    assert second.lock is not None  # the old file had one
    fresh = gptailor.compile(
        gptailor.load("p.tailor"), here / "new/out.gguf", quantize="q8_0", locking=True
    )
    assert read(second.folder, "llama").keys() == read(fresh.folder, "llama").keys()
    assert second.lock.gguf == fresh.lock.gguf


def test_an_update_names_other_types(here: Path) -> None:
    compiled(here)
    changes = []
    for kind in ("q8_0", "q8_0"):
        result = gptailor.compile(gptailor.load("p.tailor"), here / "out.gguf", quantize=kind)
        assert result.update is not None
        changes.append(result.update.changes)
    assert changes == [(("~", "types of tensors"),), ()]


def test_layers_that_predict_further_tokens_are_left_out(here: Path) -> None:
    folder, last = here / "base", "model.layers.3."
    tensors = load_file(folder / "model.safetensors")
    further = {n.replace(last, "model.layers.4."): 2 * t for n, t in tensors.items() if last in n}
    further["model.layers.4.eh_proj.weight"] = torch.ones(SIZES["hidden_size"], 2)
    save_file(tensors | further, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    plan = gptailor.load("p.tailor")
    result = gptailor.compile(plan, here / "out.gguf", locking=True)
    assert result.lock is not None
    assert "model.layers.3.eh_proj.weight" in result.lock.tensors
    assert result.lock.tensors == gptailor.lock(plan).tensors
    assert read_gguf(result.folder).facts["llama.block_count"] == 3
    assert not [name for name in read_gguf(result.folder).tensors if name.startswith("blk.3.")]
    assert gptailor.verify(result.folder).result == "verified"


def test_a_file_is_not_put_where_something_else_is(here: Path) -> None:
    Path("folder.gguf").mkdir()
    Path("link.gguf").symlink_to("elsewhere")
    os.mkfifo("pipe.gguf")
    for name in ("folder.gguf", "link.gguf", "pipe.gguf", "base/model.gguf"):
        refused("C302", lambda name=name: compiled(here, name, force=True))


def test_a_file_that_appears_during_a_compile_is_kept(here: Path) -> None:
    def appear(_: int) -> None:
        (here / "out.gguf").write_text("somebody else's")

    with pytest.raises(CheckpointError) as caught:
        compiled(here, on_event=appear)
    assert caught.value.code == "C301"
    assert (here / "out.gguf").read_text() == "somebody else's"
    assert {path.name for path in here.iterdir()} == {"base", "p.tailor", "out.gguf"}


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_is_changed_while_it_is_updated_is_left(here: Path, beside: bool) -> None:
    more = {"gguf": ["q8_0"]} if beside else {"quantize": "q8_0"}
    output, file = here / "out", here / "out-Q8_0.gguf"
    output = output if beside else file
    gptailor.compile(gptailor.load("p.tailor"), output, **more)

    def change(_: object) -> None:
        file.write_text("GGUF, mine")

    with pytest.raises(CheckpointError, match="changed since gptailor wrote it") as caught:
        gptailor.compile(gptailor.load("p.tailor"), output, **more, on_event=change)
    assert caught.value.code == "C301"
    assert file.read_text() == "GGUF, mine"
    assert not list(here.glob(".*"))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_force_replaces_gguf_files_alone(here: Path, when: str) -> None:
    file = compiled(here)

    def write(_: object = None) -> None:
        file.write_text("mine")

    if when == "before":
        write()
    on_event = write if when == "meanwhile" else ignore_events
    error = refused("C302", lambda: compiled(here, force=True, on_event=on_event))
    assert "expected a file that begins with 'GGUF', got another" in str(error)
    assert file.read_text() == "mine"


def test_force_replaces_no_foreign_file_next_to_a_folder(here: Path) -> None:
    file = here / "out-F32.gguf"
    file.write_text("mine")
    plan = gptailor.load("p.tailor")
    refused("C302", lambda: gptailor.compile(plan, "out", gguf=["f32"], force=True))
    assert file.read_text() == "mine"


def test_force_replaces_an_empty_file(here: Path) -> None:
    (here / "out.gguf").touch()  # as `mktemp` makes it
    refused("C301", lambda: compiled(here))
    assert compiled(here, force=True).read_bytes().startswith(b"GGUF")


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupt_keeps_the_existing_file(
    here: Path, exception: type[BaseException], force: bool
) -> None:
    if force:
        Path("out.gguf").write_text("GGUF, the old one")
    seen = 0

    def stop(_: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise exception

    before = {path.name for path in here.iterdir()}
    with pytest.raises(exception):
        compiled(here, on_event=stop, force=force, compute=gptailor.ComputeOptions(threads=1))
    assert {path.name for path in here.iterdir()} == before
    assert not force or Path("out.gguf").read_text() == "GGUF, the old one"


FULL = """
import resource, signal, sys
sys.dont_write_bytecode = True  # half a `.pyc` would stay for others
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import gptailor
try:
    gptailor.compile(gptailor.load("p.tailor"), "out.gguf")
except gptailor.plan.faults.TailorError as error:
    print(error.code)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(preloaded: Preloaded, here: Path) -> None:
    child = preloaded.start(FULL, cwd=here)
    output, errors = child.communicate()
    assert (child.returncode, output) == (0, "C303\n"), errors
    assert {path.name for path in here.iterdir()} == {"base", "p.tailor"}


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may have more bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1_000, "its temporary files cannot be written: File too large"),  # the tokenizer's
        (
            16_384,
            "its temporary files cannot be written: File too large",
        ),  # the header with its lock
        (100_000, "cannot be written: File too large"),
    ],
)
def test_a_limit_on_the_size_of_files_is_one_message(here: Path, size: int, message: str) -> None:
    with limited(size):
        error = refused("C303", lambda: compiled(here, locking=True))
    assert (error.message, error.path) == (message, here / "out.gguf")
    assert ("TMPDIR" in error.help) == ("temporary" in message)


def test_a_full_disk_leaves_the_old_files_of_an_update(here: Path) -> None:
    """The folder is written first; a file beside it is new or old, and the next compile goes on."""
    more = {"gguf": ["f32", "q8_0"], "dtype": "bfloat16"}
    gptailor.compile(gptailor.load("p.tailor"), "out", **more)
    before = {path.name: path.read_bytes() for path in here.glob("out*/*")}
    old = {name: Path(name).read_bytes() for name in ("out-F32.gguf", "out-Q8_0.gguf")}
    Path("p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L2\n')
    plan = gptailor.load("p.tailor")
    weights = Path("out/model.safetensors").stat().st_size
    with limited(weights - 1):
        error = refused("C303", lambda: gptailor.compile(plan, "out", **more))
    assert error.path.name == "model.safetensors"
    assert {path.name: path.read_bytes() for path in here.glob("out*/*")} == before
    with limited(len(old["out-F32.gguf"]) - 1):
        error = refused("C303", lambda: gptailor.compile(plan, "out", **more))
    assert error.path.name == "out-F32.gguf"
    assert Path("out/model.safetensors").read_bytes() != before["model.safetensors"]
    assert {name: Path(name).read_bytes() for name in old} == old
    gptailor.compile(plan, "out", **more)
    assert all(Path(name).read_bytes() != raw for name, raw in old.items())


def test_without_a_temporary_folder_the_output_and_the_remedy_are_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(here / "away"))
    error = refused("C303", lambda: compiled(here))
    assert error.message.startswith("its temporary files cannot be written: No such file")
    assert (error.path, error.help) == (
        here / "out.gguf",
        "set TMPDIR to a folder with more space",
    )


def test_a_tokenizer_in_a_gguf_file_needs_temporary_files_too(here: Path) -> None:
    file = compiled(here)
    with limited(1_000):
        error = refused("C303", lambda: tokenizer_from_gguf(file))
    assert error.message.startswith("its temporary files cannot be written: File too large")
    assert error.path == file


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("ro", "C303", "cannot be written: Read-only file system"),
        ("size=64k", "C305", "bytes, but 65,536 are free"),
    ],
)
def test_a_file_system_without_room_is_one_message(
    here: Path, options: str, code: str, message: str
) -> None:
    place = here / "mounted"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        error = refused(code, lambda: compiled(place))
        assert error.message.endswith(message)
        assert error.path == place / "out.gguf"
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("quantize", [None, "q8_0"])
@pytest.mark.parametrize("locking", [False, True])
@pytest.mark.parametrize(
    ("change", "code"),
    [("shorter", "C304"), ("other", "C304"), ("overwritten", "C304"), ("removed", "C201")],
)
def test_a_source_that_changes_while_it_is_read_is_refused(
    here: Path, quantize: str | None, locking: bool, change: str, code: str
) -> None:
    source = here / "base" / "model.safetensors"
    raw = source.read_bytes()
    calls = count()

    def on_event(event: object) -> None:
        if not isinstance(event, BytesDone) or next(calls) != 3:
            return
        match change:
            case "shorter":
                os.truncate(source, 3_000)
            case "other":
                (here / "base" / "new").write_bytes(raw[:-4] + b"abcd")
                (here / "base" / "new").rename(source)
            case "overwritten":
                source.write_bytes(raw[:5_000] + bytes(len(raw) - 5_000))
            case _:
                source.unlink()

    how: dict[str, Any] = {"quantize": quantize, "locking": locking}
    compute = gptailor.ComputeOptions(threads=1)
    error = refused(code, lambda: compiled(here, on_event=on_event, compute=compute, **how))
    assert Path(str(error.path)).name == "model.safetensors"


def test_leftovers_of_a_killed_run_are_removed(here: Path) -> None:
    left = here / ".out.gguf.partial-1-0123456789abcdef"
    left.mkdir()
    (left / "new").write_text("half")
    (left / ".lock").touch()
    compiled(here)
    assert not left.exists()


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("phi3", SIZES, "can't write the model type 'phi3' as GGUF"),
        ("llama", {"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ("qwen3", {"attention_bias": True}, "no place for the tensor 'model.layers.0.self_attn"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "divides attention by the root of 32"),
        ("gemma3_text", {"layer_types": ["full_attention", *["sliding_attention"] * 2]}, "period"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "its attention is capped"),
        ("gemma2", {"attn_logit_softcapping": None}, "caps attention and logits"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "scaled by 'dynamic'"),
        ("gemma", {"tie_word_embeddings": False}, "no place for the tensor 'lm_head.weight'"),
    ],
)  # fmt: skip
def test_settings_that_llama_cpp_computes_differently_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, config: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**SIZES, **FAMILIES.get(family, {}), **config}
    write_byte_level(tiny_model(family, tmp_path / "base", layers=3, **settings))
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    assert message in str(refused("C306", lambda: gptailor.compile(plan, "out.gguf")))


@pytest.mark.parametrize(
    ("drops", "example"),
    [
        ("drop L1", "'drop L1..L3' alone"),
        ("drop L5\ndrop L0", "'drop L0..L2' alone"),
        ("repeat L0..L1", None),
        ("stack { L2..L3 base }", None),
    ],
)
def test_a_refused_order_of_windows_has_a_valid_cut_as_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drops: str, example: str | None
) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    model(tmp_path / "base", "gemma3_text", layers=6, layer_types=kinds, sliding_window=4)
    monkeypatch.chdir(tmp_path)
    plan = gptailor.loads(f'tailor 1\nmodel base = "./base"\n{drops}', folder=tmp_path)
    help_ = refused("C306", lambda: gptailor.compile(plan, "out.gguf")).help
    assert help_.partition(", for example by ")[2] == (example or "")
    if example:
        cut = gptailor.loads(f'tailor 1\nmodel base = "./base"\n{example[1:-7]}', folder=tmp_path)
        gptailor.compile(cut, "out.gguf", dry_run=True)


@pytest.mark.parametrize(
    ("name", "quantize", "noted"),
    [
        ("out-Q8_0.gguf", None, "out-Q8_0.gguf has the type F32: --quantize q8_0 makes the type"),
        ("out.q8_0.gguf", "f16", "out.q8_0.gguf has the type F16: --quantize q8_0 makes the type"),
        ("out-Q8_0.gguf", "q8_0", ""),
        ("out-f32.gguf", None, ""),
        ("out.gguf", None, ""),
    ],
)
def test_a_name_with_another_type_is_noted(
    here: Path, name: str, quantize: str | None, noted: str
) -> None:
    made = gptailor.compile(gptailor.load("p.tailor"), name, quantize=quantize, dry_run=True)
    assert "".join(note for note in made.notes if "has the type" in note).startswith(noted)
    assert bool(noted) == any("has the type" in note for note in made.notes)


def later(merges: list[list[str]]) -> None:
    """Put one of a token's merges last, where it has several."""
    made = ["".join(merge) for merge in merges]
    merges.append(merges.pop(next(i for i, t in enumerate(made) if t in made[:i])))


def tokenizer(change: Callable[[dict[str, Any]], None], pieces: bool = False) -> None:
    """Change the tokenizer of the model here."""
    if pieces:
        write_pieces(Path("base"), size=380)
    path = Path("base/tokenizer.json")
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


AT_A_STRING = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


@pytest.mark.parametrize(
    ("pieces", "change", "message"),
    [
        (False, lambda t: t["model"].update(ignore_merges=True), "without a name in llama.cpp"),
        (False, lambda t: t.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True,
                                                  "trim_offsets": True}),
         "without a name in llama.cpp"),
        (False, lambda t: t.update(pre_tokenizer=AT_A_STRING), "without a name in llama.cpp"),
        (False, lambda t: t.update(normalizer={"type": "Lowercase"}), "by 'Lowercase'"),
        (False, lambda t: t["added_tokens"][0].update(lstrip=True), "'lstrip' for its token"),
        (True, lambda t: t["model"]["merges"].pop(), "which llama.cpp would"),
        (True, lambda t: later(t["model"]["merges"]), "two merges"),
        (True, lambda t: t.update(normalizer={"type": "Lowercase"}), "treats spaces differently"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_lacks_is_refused_with_the_reason(
    here: Path, pieces: bool, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    tokenizer(change, pieces)
    assert message in str(refused("C306", lambda: compiled(here)))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(here: Path) -> None:
    write_byte_level(here / "base", size=400)
    assert "has a token with the number 399" in str(refused("C306", lambda: compiled(here)))


def test_a_tokenizer_of_words_is_refused(here: Path) -> None:
    write_tokenizer(here / "base")
    assert "'WordLevel'" in str(refused("C306", lambda: compiled(here)))
    Path("base/tokenizer.json").unlink()
    assert "can't be loaded" in str(refused("C306", lambda: compiled(here)))


def test_scores_of_pieces_go_down_in_the_order_of_their_merges(here: Path) -> None:
    write_pieces(here / "base", size=380)
    facts = read_gguf(compiled(here)).facts
    tokens, scores = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.scores"]
    state = json.loads((here / "base" / "tokenizer.json").read_text())
    order = list(dict.fromkeys(a + b for a, b in state["model"]["merges"]))
    assert isinstance(tokens, tuple)
    assert isinstance(scores, tuple)
    by_token = dict(zip(tokens, scores, strict=True))
    assert [by_token[token] for token in order] == [-float(i) for i in range(len(order))]
    assert facts["tokenizer.ggml.add_space_prefix"] is True
    assert facts["tokenizer.ggml.add_bos_token"] is True


def test_numbers_that_the_type_cannot_hold_are_refused(here: Path) -> None:
    tensors = load_file("base/model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    error = refused("C307", lambda: compiled(here, quantize="f16"))
    assert "'model.layers.0.mlp.up_proj.weight'" in str(error)
    compiled(here, quantize="q8_0")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    error = refused("C307", lambda: compiled(here, "x.gguf", quantize="q4_1"))
    assert "up_proj.weight' contains nan, which Q4_1 can't represent" in str(error)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = -3e38
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    refused("C307", lambda: compiled(here, "x.gguf", quantize="iq4_nl"))
    error = refused("C307", lambda: compiled(here, "x.gguf", quantize="q8_0"))
    assert "up_proj.weight' contains -3.00000001e+38, which Q8_0 can't represent" in str(error)


def test_a_type_that_needs_llama_cpps_library_names_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.output.gguf.quantise._library", lambda: None)
    error = refused("C110", lambda: compiled(here, "x.gguf", quantize="iq4_nl"))
    assert "iq4_nl needs the package 'xllamacpp'" in str(error)
    assert "pip install 'gptailor[gguf]'" in str(error)
    assert not (here / "x.gguf").exists()
    compiled(here, "y.gguf", quantize="q4_0")


@pytest.mark.parametrize("kind", ["q8_0", "q6_k", "q5_k_s", "q4_1", "q4_0", "q3_k_s", "iq4_nl"])
def test_blocks_of_weights_too_small_for_their_type_are_noted(tmp_path: Path, kind: str) -> None:
    model(tmp_path / "base", layers=2, hidden_size=256, intermediate_size=256, head_dim=64)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    tensors[name][2] = 0.0
    save_file(tensors, file, {"format": "pt"})
    assert not gptailor.compile(plan, tmp_path / "out.gguf", quantize=kind).notes
    tensors[name][3:5], tensors[other][6, :256] = 1e-9, -1e-9
    save_file(tensors, file, {"format": "pt"})
    blocks = 3 * 256 // KINDS[FILE_TYPES[kind.upper()].kind].block
    result = gptailor.compile(plan, tmp_path / "out.gguf", quantize=kind, force=True)
    [note] = result.notes
    assert (
        f"too small for the type: 2, blocks: {blocks}, the first in 'blk.0.ffn_up.weight'" in note
    )
    whole = gptailor.compile(plan, tmp_path / "f32.gguf", quantize="bf16")
    assert not whole.notes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token_id": 2**40}, "padding_token_id': expected a number of at most 32 bits"),
        ({"num_key_value_heads": 10**400}, "'num_key_value_heads' is too large"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "'factor' is 'x', expected"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1e39}}, "'factor' is 1e+39"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "'factor' is None"),
        ({"rope_parameters": {"rope_theta": None}}, "'rope_theta' is None, expected"),
        ({"rope_parameters": {"rope_theta": 1e300}}, "'rope_theta' is 1e+300, expected"),
        ({"rope_parameters": {"partial_rotary_factor": []}}, "[] of each head is rotated"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 8,
                }
            },
            "'factor' is 0, expected a number",
        ),
    ],
)
def test_a_setting_without_room_in_the_file_is_refused(
    here: Path, config: dict[str, Any], message: str
) -> None:
    settings = json.loads(Path("base/config.json").read_text())
    if (rope := config.get("rope_parameters")) is not None:
        config = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", **rope}}
    Path("base/config.json").write_text(json.dumps(settings | config))
    assert message in str(refused("C306", lambda: compiled(here)))


def test_types_that_cannot_be_written_are_refused_by_name() -> None:
    assert quantised_kind("Q8_0") == quantised_kind("q8_0") == "Q8_0"
    for name, message in (("q2_k", "'q2_k'; make it from an f16 file with llama-quantize"),
                       ("iq2_xxs", "; make it from an f16 file"),
                       ("tq1_0", "trained for it"), ("q9", "'q9'$"),
                       ("Q4_KM", "did you mean 'q4_k_m'"), ("q80", "'q8_0'")):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"expected the GGUF type f32, .* or q3_k_s, got .*{message}"
        ):
            quantised_kind(name)


# ------------------------------------------------------------------------------ beside a folder


def test_files_next_to_a_folder_equal_files_written_alone(here: Path) -> None:
    plan = gptailor.load("p.tailor")
    folder = gptailor.compile(plan, here / "out", gguf=["q6_k", "bf16"], locking=True)
    assert [file.folder.name for file in folder.gguf] == ["out-Q6_K.gguf", "out-BF16.gguf"]
    for file in folder.gguf:
        together = file.folder.read_bytes()
        kind = file.folder.stem.partition("-")[2].lower()
        alone = gptailor.compile(plan, file.folder, quantize=kind, force=True, locking=True)
        assert alone.folder.read_bytes() == together
        assert (file.size, file.notes, file.lock) == (alone.size, alone.notes, alone.lock)
    assert folder.lock is not None
    assert folder.lock.gguf is None
    again = gptailor.compile(plan, here / "again", gguf=["q6_k"], locked=folder.lock)
    kept = open_checkpoint(again.gguf[0].folder).tensors
    assert kept.keys() == open_checkpoint(folder.gguf[0].folder).tensors.keys()


def test_all_outputs_together_need_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = gptailor.load("p.tailor")
    planned = gptailor.compile(plan, here / "out", gguf=["q8_0"], dry_run=True)
    room = planned.size + planned.gguf[0].size // 2
    monkeypatch.setattr(compile_module, "free_space", lambda path: room)
    error = refused("C305", lambda: gptailor.compile(plan, here / "out", gguf=["q8_0"]))
    assert f"but {room:,} are free" in str(error)
    gptailor.compile(plan, here / "out")


def test_bridges_are_fitted_once_for_all_outputs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "text.txt").write_text(TEXT * 20)
    Path("p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\nbridge on "text.txt"\n')
    fits, fit = [], compile_module.fit_tensors

    def counted(*given: Any, **how: Any) -> Any:
        fits.append(fit(*given, **how))
        return fits[-1]

    monkeypatch.setattr(compile_module, "fit_tensors", counted)
    folder = gptailor.compile(gptailor.load("p.tailor"), here / "out", gguf=["f32"])
    assert len(fits) == 1
    wanted = expected(here / "out", "llama")
    for name, tensor in read(folder.gguf[0].folder, "llama").items():
        np.testing.assert_array_equal(values(tensor), wanted[name], err_msg=name)


def test_an_output_that_cannot_be_written_is_refused_before_any_is(here: Path) -> None:
    plan = gptailor.load("p.tailor")
    (here / "out-Q8_0.gguf").write_text("mine")
    refused("C301", lambda: gptailor.compile(plan, here / "out", gguf=["q4_0", "q8_0"]))
    (here / "out-Q8_0.gguf").unlink()
    refused("C306", lambda: gptailor.compile(plan, here / "out", gguf=["q8_0", "Q8_0"]))
    refused("C306", lambda: gptailor.compile(plan, here / "out.gguf", gguf=["q8_0"]))
    refused("C306", lambda: gptailor.compile(plan, "/", gguf=["q8_0"]))
    with pytest.raises(ValueError, match=r"expected the GGUF type f32, .*, got 'q2_k'"):
        gptailor.compile(plan, here / "out", gguf=["q8_0", "q2_k"])
    assert not list(here.glob("out*"))


# -------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_file_and_describes_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compile", "p.tailor", "-o", "out.gguf", "--quantize", "q8_0", "--lock"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("out.gguf: 3 layers (the base has 4), ")
    assert "p.tailor.lock: " in output
    assert cli.run(["compile", "p.tailor", "-o", "b.gguf", "--quantize", "q8_0", "--locked"]) == 0
    assert cli.run(["verify", "out.gguf"]) == 0
    capsys.readouterr()
    before = sorted(here.iterdir())
    assert (
        cli.run(["compile", "p.tailor", "-o", "dry.gguf", "--dry-run", "--quantize", "q4_0"]) == 0
    )
    assert "would write dry.gguf: 3 layers" in (output := capsys.readouterr().out)
    plan = gptailor.load("p.tailor")
    assert sorted(here.iterdir()) == before
    size = gptailor.compile(plan, here / "dry.gguf", quantize="q4_0").folder.stat().st_size
    assert f"{size:,} bytes" in output
    update = ["compile", "p.tailor", "-o", "dry.gguf", "--quantize", "q4_0"]
    assert cli.run([*update, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert planned.endswith("dry.gguf: would be written again; nothing changed in the plan\n")
    assert cli.run(update) == 0
    output = capsys.readouterr().out
    assert output.startswith("dry.gguf: written again; nothing changed in the plan\n")
    assert "computed" not in output


def test_the_command_writes_files_next_to_the_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["compile", "p.tailor", "-o", "out", "--gguf", "q4_k_m", "--gguf", "f16"]
    before = sorted(here.iterdir())
    assert cli.run([*run, "--dry-run"]) == 0
    assert sorted(here.iterdir()) == before
    planned = capsys.readouterr().out
    assert cli.run(run) == 0
    output, notes = capsys.readouterr()
    assert notes.startswith("note: out-Q4_K_M.gguf: tensors with rows that aren't whole blocks of")
    for name in ("out-Q4_K_M.gguf", "out-F16.gguf"):
        assert f"{(here / name).stat().st_size:,} bytes in {name}" in planned
        assert f"{name}: " in output
    (here / "out-F16.gguf").unlink()  # as after a run that failed half way
    before = (here / "out-Q4_K_M.gguf").read_bytes()
    assert cli.run(run) == 0
    assert (here / "out-F16.gguf").exists()
    assert (here / "out-Q4_K_M.gguf").read_bytes() == before
    (here / "out-Q4_K_M.gguf").write_bytes(b"mine")
    capsys.readouterr()
    assert cli.run(run) == 3
    assert "out-Q4_K_M.gguf" in capsys.readouterr().err


def test_the_command_refuses_incompatible_options(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compile", "p.tailor", "-o", "out", "--quantize", "q8_0"]) == 2
    assert "--quantize needs an output NAME.gguf" in capsys.readouterr().err
    assert cli.run(["compile", "p.tailor", "-o", "out.gguf", "--gguf", "q8_0"]) == 2
    assert "--gguf needs an output folder" in capsys.readouterr().err
    assert cli.run(["compile", "p.tailor", "-o", "out.gguf", "--quantize", "q2_k"]) == 2
    assert "make it from an f16 file with llama-quantize" in capsys.readouterr().err
    assert not list(here.glob("out*"))


def test_names_are_short_enough_for_llama_cpp(here: Path) -> None:
    from gptailor.prepare import prepare

    file = GgufFile(prepare(gptailor.load("p.tailor")), here / "out.gguf")
    assert max(map(len, file.tensors)) + len("99999") < 64


def test_a_dry_run_knows_the_size_with_the_lock(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = here / "p.tailor"
    bare = gptailor.compile(plan, here / "bare", gguf=["q8_0"], dry_run=True).gguf[0].size
    plan.write_text(plan.read_text() + f"expect bytes(gguf=q8_0) <= {bare}\n")
    run = ["compile", "p.tailor", "-o", "out", "--gguf", "q8_0"]
    missed = f"'expect bytes(gguf=q8_0) <= {bare}' isn't met: out-Q8_0.gguf has "
    assert cli.run([*run, "--dry-run"]) == 0
    assert missed not in capsys.readouterr().err
    for arguments in ([*run, "--lock", "--dry-run"], [*run, "--lock"]):
        assert cli.run(arguments) == 0
        output, notes = capsys.readouterr()
        size = int(notes.partition(missed)[2].partition(" bytes\n")[0].replace(",", ""))
        assert f"{size:,} bytes" in output
        assert f"note: its size contains the lock, {size - bare:,} bytes" in notes
        assert "the file is smaller without --lock" in notes
    assert (here / "out-Q8_0.gguf").stat().st_size == size


def test_an_expectation_that_a_size_misses_is_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = here / "p.tailor"
    plan.write_text(plan.read_text() + "expect parameters() <= 10\nexpect bytes() >= 10\n")
    assert cli.run(["compile", "p.tailor", "-o", "out", "--dry-run"]) == 0
    warning = "warning: 'expect parameters() <= 10' isn't met: it has "
    assert capsys.readouterr().err.startswith(warning)


def test_a_vocabulary_cut_of_a_gguf_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    model(tmp_path / "base", layers=2)
    whole = gptailor.loads('tailor 1\nmodel base = "./base"\n', folder=tmp_path)
    gptailor.compile(whole, tmp_path / "whole.gguf")
    (tmp_path / "a.txt").write_text("a text\n")
    text = 'tailor 1\nmodel base = "./{}"\nvocabulary 300 on "a.txt"\n'
    with pytest.raises(PlanError) as caught:
        prepare(gptailor.loads(text.format("whole.gguf"), folder=tmp_path))
    [fault] = caught.value.faults
    help_ = "compile a plan of only this file into a folder, and name the folder here"
    assert (fault.code, fault.help) == ("C603", help_)
    again = gptailor.loads('tailor 1\nmodel base = "./whole.gguf"\n', folder=tmp_path)
    gptailor.compile(again, tmp_path / "folder")
    cut = prepare(gptailor.loads(text.format("folder"), folder=tmp_path))
    assert cut.compiled.config["vocab_size"] == 300
