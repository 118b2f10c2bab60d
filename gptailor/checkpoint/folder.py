"""A checkpoint on disk: a folder's configuration, its tensors by name, its side files."""

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, final

from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX, FoundFamily
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, layout_of
from gptailor.checkpoint.files import CheckpointError, is_gguf, quoted, read_object, reading, reason
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE, read_pickled
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.tensor import TensorInfo
from gptailor.plan.faults import PLAN_FILE, listed, nearest_path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
GENERATION_CONFIG = "generation_config.json"

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "tekken.json", "vocab.json",
    "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files of a tokenizer, apart from `additional_chat_templates/*.jinja`."""

PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Files that define how images and sounds become a tower's inputs."""

_TEMPLATES = "additional_chat_templates"
_OF_A_MODEL = (
    CONFIG, GENERATION_CONFIG, "adapter_config.json", *TOKENIZER_FILES, _TEMPLATES,
    *PROCESSOR_FILES, "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", BIN_INDEX,
    "adapter_model.bin", f"*{FAMILY_SUFFIX}", PLAN_FILE, f"{PLAN_FILE}.lock",
    "README.md", "LICENSE*", ".gitattributes", ".cache", ".DS_Store",
)  # fmt: skip
"""Patterns of the files and folders in a model's or an adapter's folder."""
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")


@final
@dataclass(frozen=True)
class Checkpoint:
    """A folder with a configuration and weights; the tensors are known, and not read.

    `family` is the family from a file, if one reads it. A `nested` checkpoint isn't a folder: it is
    made of other models, `folder` has its tokenizer, `files` are all that it reads.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    family: FoundFamily | None = None
    nested: bool = False

    def layout(self) -> Layout | Refusal:
        """Return the roles of its tensors, or the reason why its layers can't be moved."""
        if self.family is not None:
            return self.family.layout(self.config, self.tensors)
        return layout_of(self.config, self.tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's configuration and its headers. Raises CheckpointError for any fault.

    Weights are found as transformers does: `model.safetensors`, then the index of several files;
    else a single file of another name, then PyTorch's `.bin` files. A GGUF file, or a folder with
    one and no other weights, has its configuration in itself.
    """
    names = [] if is_gguf(folder) else _listing(folder)
    file = folder if is_gguf(folder) else only_gguf(folder, names)
    if file is not None:
        return Checkpoint(folder, *open_gguf(file), (file,))
    if CONFIG not in names:
        adapter = "adapter_config.json" in names
        help = 'this is an adapter: write `model NAME = base + "…"`' if adapter else ""
        raise CheckpointError("C102", f"the folder has no {CONFIG}", folder, help)
    config = read_object(folder / CONFIG, "C103", duplicate=None)
    tensors, files = _weights(folder, names)
    return Checkpoint(folder, config, tensors, files)


def is_weights(name: str) -> bool:
    """Return whether a file holds weights, by its name."""
    return name.lower().endswith((".safetensors", *_OTHER_WEIGHTS))


def _weights(
    folder: Path, names: Collection[str]
) -> tuple[dict[str, TensorInfo], tuple[Path, ...]]:
    if INDEX in names and SINGLE not in names:
        return _read_shards(folder, INDEX, read_header)
    candidates = [name for name in names if name.endswith(".safetensors") and name != ADAPTER]
    if not candidates and BIN_SINGLE in names:
        return read_pickled(folder / BIN_SINGLE), (folder / BIN_SINGLE,)
    if not candidates and BIN_INDEX in names:
        return _read_shards(folder, BIN_INDEX, read_pickled)
    if SINGLE in names:
        candidates = [SINGLE]
    if len(candidates) > 1:
        message = f"has {len(candidates)} safetensors files, but no {INDEX} that joins them"
        raise CheckpointError("C104", message, folder)
    if not candidates:
        raise CheckpointError("C104", f"has no safetensors weights{_others(names)}", folder)
    return read_header(folder / candidates[0]), (folder / candidates[0],)


def _others(names: Iterable[str]) -> str:
    files = [n for n in names if n == ADAPTER or n.lower().endswith(_OTHER_WEIGHTS)]
    if len(files) > 5:
        return f"; found {listed(map(quoted, files[:5]), ',')} and {len(files) - 5} more"
    return f"; found {listed(map(quoted, files))}" if files else ""


def only_gguf(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the folder's one GGUF file, if it has no weights of another kind."""
    weights = [name for name in names if is_weights(name)]
    if len(weights) == 1 and is_gguf(folder / weights[0]):
        return folder / weights[0]
    if weights and all(is_gguf(folder / name) for name in weights):
        message = f"has {len(weights)} GGUF files: {listed(map(quoted, weights[:8]))}"
        raise CheckpointError("C104", message, folder, "name one of them as the model's source")
    return None


def foreign_names(folder: Path) -> list[str]:
    """Return the names in a folder that no model or adapter has, in order."""
    return [n for n in _listing(folder) if not any(fnmatchcase(n, each) for each in _OF_A_MODEL)]


def tokenizer_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the existing files of a checkpoint's tokenizer."""
    folder = checkpoint.folder
    if is_gguf(folder):
        return ()
    names = _listing(folder)
    paths = [folder / name for name in TOKENIZER_FILES if name in names]
    if _TEMPLATES in names:
        templates = folder / _TEMPLATES
        paths += [templates / name for name in _listing(templates) if name.endswith(".jinja")]
    return tuple(_regular(path) for path in paths)


def processor_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the existing files of a checkpoint's processors of images and sounds."""
    folder = checkpoint.folder
    names = () if is_gguf(folder) else _listing(folder)
    return tuple(_regular(folder / name) for name in PROCESSOR_FILES if name in names)


def generation_config(checkpoint: Checkpoint) -> Path | None:
    """Return the file with the model's generation settings, if there is one."""
    path = checkpoint.folder / GENERATION_CONFIG
    return _regular(path) if os.path.lexists(path) else None


def _listing(folder: Path) -> list[str]:
    with reading(folder, "C101"):
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError as error:
            whole = os.path.abspath(folder)  # noqa: PTH100 (links stay)
            help_ = nearest_path(folder)
            help_ = f"the whole path is {whole}" if ".." in folder.parts and not help_ else help_
            raise CheckpointError("C101", "there is no such folder", folder, help_) from error
        except NotADirectoryError as error:
            raise CheckpointError("C101", "is not a folder", folder) from error


def _regular(path: Path) -> Path:
    """Return the path of a regular file; a link to nothing must not look like no file."""
    with reading(path):
        regular = stat.S_ISREG(path.stat().st_mode)
    if not regular:
        raise CheckpointError("C201", "is not a regular file", path)
    return path


def _read_shards(
    folder: Path, index: str, read: Callable[[Path], dict[str, TensorInfo]]
) -> tuple[dict[str, TensorInfo], tuple[Path, ...]]:
    """Return all tensors of all files that the index names, as transformers takes them."""
    mapped = weight_map(folder / index)
    files = {name: _shard(folder, name, index) for name in sorted(set(mapped.values()))}
    tensors: dict[str, TensorInfo] = {}
    unique = tuple(dict.fromkeys(files.values()))
    for file in unique:
        for name, info in read(file).items():
            if name in tensors:
                message = f"{quoted(name)} is in {quoted(tensors[name].file.name)} too"
                raise CheckpointError("C107", message, file)
            tensors[name] = info
    for name, shard in mapped.items():
        if name not in tensors or tensors[name].file != files[shard]:
            message = f"the index has {quoted(name)} in {quoted(shard)}, which lacks it"
            raise CheckpointError("C107", message, folder / index)
    return tensors, unique


def weight_map(path: Path) -> dict[str, str]:
    """Return the file of each tensor from an index."""
    mapped = read_object(path, "C105", duplicate="C107").get("weight_map")
    if not isinstance(mapped, dict):
        raise CheckpointError("C105", "the index has no 'weight_map' object", path)
    if not mapped:
        raise CheckpointError("C105", "the index's 'weight_map' names no tensor", path)
    for name, file in mapped.items():
        if not isinstance(file, str):
            raise CheckpointError("C105", f"the index gives no file name for {quoted(name)}", path)
    return mapped


def _shard(folder: Path, name: str, index: str) -> Path:
    """Return the path of a file that the index names, within the folder; it may be a link."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        message = f"the index names {quoted(name)}, which is not a file within the folder"
        raise CheckpointError("C106", message, folder / index)
    path = folder / name
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        state = "is a broken link" if path.is_symlink() else "is missing"
        message = f"the index names {quoted(name)}, which {state}"
        raise CheckpointError("C106", message, folder / index, "download it again") from error
    except (OSError, ValueError) as error:
        message = f"the index names {quoted(name)}, which cannot be read: {reason(error)}"
        raise CheckpointError("C106", message, folder / index) from error
    return path
