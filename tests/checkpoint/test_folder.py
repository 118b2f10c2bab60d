"""Checkpoint folders: what transformers would load is found, everything else named."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import (
    INDEX,
    TOKENIZER_FILES,
    generation_config,
    open_checkpoint,
    tokenizer_files,
)

A, B = {"a": torch.ones(2)}, {"b": torch.zeros(3, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "limits": [0.0, Infinity]}')
    return folder


@pytest.fixture
def sharded(folder: Path) -> Path:
    save_file(A, folder / "one.safetensors")
    save_file(B, folder / "two.safetensors")
    write_index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return caught.value


def test_a_single_file_is_read(folder: Path) -> None:
    save_file(A | B, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.folder == folder
    assert checkpoint.config == {"model_type": "llama", "limits": [0.0, float("inf")]}
    assert checkpoint.files == (folder / "model.safetensors",)
    assert {n: t.spec.shape for n, t in checkpoint.tensors.items()} == {"a": (2,), "b": (3,)}


def test_shards_are_joined(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.files == (sharded / "one.safetensors", sharded / "two.safetensors")
    assert {n: t.file.name for n, t in checkpoint.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_two_spellings_of_a_file_are_one_file(sharded: Path) -> None:
    save_file(A | B, sharded / "one.safetensors")
    write_index(sharded, {"a": "./one.safetensors", "b": "one.safetensors"})
    assert open_checkpoint(sharded).files == (sharded / "one.safetensors",)


def test_the_single_file_wins_as_in_transformers(sharded: Path) -> None:
    save_file({"c": torch.ones(1)}, sharded / "model.safetensors")
    assert open_checkpoint(sharded).tensors.keys() == {"c"}


def test_a_single_file_of_another_name_is_read(folder: Path) -> None:
    save_file(A, folder / "weights.safetensors")
    assert open_checkpoint(folder).files == (folder / "weights.safetensors",)


def test_links_into_a_blob_store_are_followed(sharded: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in tuple(sharded.iterdir()):
        path.rename(blobs / f"{path.name}-sha")
        path.symlink_to(Path("..") / "blobs" / f"{path.name}-sha")
    assert open_checkpoint(sharded).tensors.keys() == {"a", "b"}


def test_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("none", "file", "loop", "file/below", "a\0b"):
        assert refused(tmp_path / name).code == "C101"
    assert "no such folder" in str(refused(tmp_path / "none"))
    beside = refused(tmp_path / "kit" / ".." / ".." / "__none__")
    assert beside.help == f"the whole path is {tmp_path.parent / '__none__'}"


def test_the_configuration_is_needed(tmp_path: Path) -> None:
    assert refused(tmp_path).code == "C102"
    (tmp_path / "adapter_config.json").touch()
    assert "adapter" in refused(tmp_path).help


@pytest.mark.parametrize("text", ["", "[]", "{", "{'a': 1}", '{"a": ' + "[" * 100_000, "\xff"])
def test_the_configuration_is_an_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert refused(folder).code == "C103"


def test_the_configuration_is_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert refused(folder).code == "C103"


def test_other_weights_are_named(folder: Path) -> None:
    assert "found" not in refused(folder).message
    (folder / "adapter_model.safetensors").touch()
    (folder / "pytorch_model_fp32.bin").touch()
    (folder / "q4.GGUF").touch()
    error = refused(folder)
    assert error.code == "C104"
    result = "'adapter_model.safetensors', 'pytorch_model_fp32.bin' and 'q4.GGUF'"
    assert error.message == f"has no safetensors weights; found {result}"
    for n in range(9):
        (folder / f"{n}.bin").touch()
    assert refused(folder).message.endswith("and 7 more")


def test_several_files_need_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    error = refused(sharded)
    assert error.code == "C104"
    assert "2 safetensors files" in error.message


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_a_malformed_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    error = refused(sharded)
    assert error.code == "C105"
    assert error.path == sharded / INDEX


def test_an_index_stays_within_its_folder(sharded: Path) -> None:
    (sharded / "sub").mkdir()
    save_file(A, sharded.parent / "one.safetensors")
    absolute = str(sharded.parent / "one.safetensors")
    for name in ("../one.safetensors", "sub/../one.safetensors", absolute, "", ".", "a\0b"):
        write_index(sharded, {"a": name})
        assert refused(sharded).code == "C106"
        assert "not a file within the folder" in refused(sharded).message


def test_a_missing_file_of_an_index_is_refused(sharded: Path) -> None:
    path = sharded / "two.safetensors"
    path.unlink()
    assert refused(sharded).code == "C106"
    assert "'two.safetensors', which is missing" in refused(sharded).message
    path.symlink_to("gone")
    assert "is a broken link" in refused(sharded).message
    path.unlink()
    path.symlink_to(path)
    error = refused(sharded)
    assert error.code == "C106"
    assert "symbolic links" in error.message


def test_an_index_with_wrong_entries_is_refused(sharded: Path) -> None:
    write_index(sharded, {"a": "two.safetensors", "b": "one.safetensors"})
    assert refused(sharded).code == "C107"
    write_index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    error = refused(sharded)
    assert error.code == "C107"
    assert "'c'" in error.message


def test_a_tensor_is_in_one_shard(sharded: Path) -> None:
    save_file(A | B, sharded / "two.safetensors")
    error = refused(sharded)
    assert error.code == "C107"
    assert "'a' is in 'one.safetensors' too" in error.message
    two = '"a": "one.safetensors", "a": "two.safetensors"'
    (sharded / INDEX).write_text(f'{{"weight_map": {{{two}}}}}')
    assert refused(sharded).code == "C107"


def test_a_broken_shard_is_named(sharded: Path) -> None:
    (sharded / "two.safetensors").write_bytes(b"")
    error = refused(sharded)
    assert (error.code, error.path) == ("C202", sharded / "two.safetensors")


def test_tokenizer_and_template_files_are_found(folder: Path) -> None:
    save_file(A, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert tokenizer_files(checkpoint) == ()
    assert generation_config(checkpoint) is None
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    for path in (*(folder / name for name in TOKENIZER_FILES), templates / "tool.jinja"):
        path.touch()
    (templates / "notes.txt").touch()
    (folder / "README.md").touch()
    (folder / "generation_config.json").touch()
    results = [str(path.relative_to(folder)) for path in tokenizer_files(checkpoint)]
    assert results == [*TOKENIZER_FILES, "additional_chat_templates/tool.jinja"]
    assert generation_config(checkpoint) == folder / "generation_config.json"


def test_a_link_to_nothing_isnt_a_missing_file(folder: Path) -> None:
    save_file(A, folder / "model.safetensors")
    (folder / "tokenizer.json").symlink_to("gone")
    (folder / "generation_config.json").mkdir()
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"C201.*\n.*tokenizer\.json"):
        tokenizer_files(checkpoint)
    with pytest.raises(CheckpointError, match=r"C201.*not a regular file"):
        generation_config(checkpoint)
