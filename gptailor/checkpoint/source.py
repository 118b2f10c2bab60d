"""A checkpoint that is there: a folder's configuration, its tensors by name, its side files."""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptailor.checkpoint.error import CheckpointError, quoted, reason
from gptailor.checkpoint.header import TensorInfo, read_header
from gptailor.checkpoint.regular import read_object
from gptailor.diagnostics import listed

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
GENERATION_CONFIG = "generation_config.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer may consist of, besides `additional_chat_templates/*.jinja`."""

_TEMPLATES = "additional_chat_templates"
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a configuration and weights; the tensors are known, none is read."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's configuration and its headers; whatever is wrong is a `CheckpointError`.

    Weights are looked for as transformers does: `model.safetensors`, then the index of several
    files; else a single file of another name will do.
    """
    names = _listing(folder)
    if CONFIG not in names:
        adapter = "adapter_config.json" in names
        help = 'this is an adapter: write `model NAME = base + "…"`' if adapter else ""
        raise CheckpointError("C102", f"the folder has no {CONFIG}", folder, help)
    config = read_object(folder / CONFIG, "C103", duplicate=None)
    if INDEX in names and SINGLE not in names:
        tensors, files = _read_shards(folder)
    else:
        file = folder / _single(folder, names)
        tensors, files = read_header(file), (file,)
    return Checkpoint(folder, config, tensors, files)


def tokenizer_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files of a checkpoint's tokenizer, those that are there."""
    folder = checkpoint.folder
    names = _listing(folder)
    found = [folder / name for name in TOKENIZER_FILES if name in names]
    if _TEMPLATES in names:
        templates = folder / _TEMPLATES
        found += [templates / name for name in _listing(templates) if name.endswith(".jinja")]
    return tuple(_regular(path) for path in found)


def generation_config(checkpoint: Checkpoint) -> Path | None:
    """The file of how the model generates, if there is one."""
    path = checkpoint.folder / GENERATION_CONFIG
    return _regular(path) if os.path.lexists(path) else None


def _listing(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError as error:
        raise CheckpointError("C101", "there is no such folder", folder) from error
    except NotADirectoryError as error:
        raise CheckpointError("C101", "is not a folder", folder) from error
    except (OSError, ValueError) as error:
        raise CheckpointError("C101", f"cannot be read: {reason(error)}", folder) from error


def _regular(path: Path) -> Path:
    """The path, if a regular file is there; a link to nothing must not look like no file."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise CheckpointError("C201", f"cannot be read: {reason(error)}", path) from error
    if not regular:
        raise CheckpointError("C201", "is not a regular file", path)
    return path


def _single(folder: Path, names: Iterable[str]) -> str:
    """The name of the one file that holds the weights."""
    if SINGLE in names:
        return SINGLE
    candidates = [n for n in names if n.endswith(".safetensors") and n != ADAPTER]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        message = f"holds {len(candidates)} safetensors files and no {INDEX} that joins them"
        raise CheckpointError("C104", message, folder)
    others = [n for n in names if n == ADAPTER or n.lower().endswith(_OTHER_WEIGHTS)]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    found = (
        f"; found {listed(map(quoted, others[:5]), ',' if more else 'and')}{more}" if others else ""
    )
    raise CheckpointError("C104", f"holds no safetensors weights{found}", folder)


# ------------------------------------------------------------------------------------ many shards


def _read_shards(folder: Path) -> tuple[dict[str, TensorInfo], tuple[Path, ...]]:
    """All tensors of all files that the index names, as transformers takes them."""
    weight_map = _weight_map(folder / INDEX)
    files = {name: _shard(folder, name) for name in sorted(set(weight_map.values()))}
    tensors: dict[str, TensorInfo] = {}
    unique = tuple(dict.fromkeys(files.values()))
    for file in unique:
        for name, info in read_header(file).items():
            if name in tensors:
                message = f"{quoted(name)} is in {quoted(tensors[name].file.name)} too"
                raise CheckpointError("C107", message, file)
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != files[shard]:
            message = f"the index puts {quoted(name)} into {quoted(shard)}, which lacks it"
            raise CheckpointError("C107", message, folder / INDEX)
    return tensors, unique


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_object(path, "C105", duplicate="C107").get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError("C105", "the index has no 'weight_map' object", path)
    if not weight_map:
        raise CheckpointError("C105", "the index's 'weight_map' names no tensor", path)
    for name, file in weight_map.items():
        if not isinstance(file, str):
            message = f"the index gives no file name for {quoted(name)}"
            raise CheckpointError("C105", message, path)
    return weight_map


def _shard(folder: Path, name: str) -> Path:
    """The path of a file that the index names: within the folder, though it may be a link."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        message = f"the index names {quoted(name)}, which is not a file within the folder"
        raise CheckpointError("C106", message, folder / INDEX)
    path = folder / name
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        gone = "is a link to nothing" if path.is_symlink() else "is not there"
        message = f"the index names {quoted(name)}, which {gone}"
        raise CheckpointError("C106", message, folder / INDEX, "download it again") from error
    except (OSError, ValueError) as error:
        message = f"the index names {quoted(name)}, which cannot be read: {reason(error)}"
        raise CheckpointError("C106", message, folder / INDEX) from error
    return path
