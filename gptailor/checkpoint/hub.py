"""Checkpoints on the Hugging Face Hub, through its own library: small files first, weights late.

Opening a model fetches its configuration, tokenizer and index, and reads the headers of weights
that are not in the cache by range requests; `fetch` gets the weights that a program reads. The
user's own cache, token, mirror and offline mode hold (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`).
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint import folder as on_disk
from gptailor.checkpoint.files import CheckpointError, quoted, read_object
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.tensor import DTYPE_BITS, TensorInfo, TensorSpec

_SMALL_FILES = (
    on_disk.CONFIG, on_disk.GENERATION_CONFIG, on_disk.INDEX, "adapter_config.json",
    BIN_INDEX, "additional_chat_templates/*.jinja", *on_disk.TOKENIZER_FILES,
    *on_disk.PROCESSOR_FILES,
)  # fmt: skip
"""Files that are fetched of every model: all but its weights."""


@final
@dataclass(frozen=True)
class Remote:
    """The place of a checkpoint on the Hub: its id, and the resolved commit."""

    repo: str
    commit: str


def snapshot(repo: str, revision: str | None, names: Iterable[str] = _SMALL_FILES) -> Path:
    """Return the folder of a revision in the local cache, after fetching these files of it."""
    from huggingface_hub import snapshot_download

    with talking(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names)))


def cached(repo: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a revision in the local cache, or None; the Hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    with talking(repo, revision):
        path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def open_hub(repo: str, revision: str | None) -> tuple[on_disk.Checkpoint, Remote]:
    """Open a model on the Hub, without its weights, unless they have no header to request."""
    folder = snapshot(repo, revision)
    remote = Remote(repo, folder.name)
    names = _weights(folder, remote)
    if not all(name.endswith(".safetensors") for name in names):
        folder = snapshot(repo, remote.commit, [*_SMALL_FILES, *names])
    files = tuple(folder / name for name in names)
    if all(file.exists() for file in files):
        return on_disk.open_checkpoint(folder), remote
    config = read_object(folder / on_disk.CONFIG, "C103", duplicate=None)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors |= read_header(file) if file.exists() else _header(folder, remote, file)
    return on_disk.Checkpoint(folder, config, tensors, files), remote


def open_adapter(repo: str, revision: str | None) -> tuple[Path, Remote]:
    """Fetch an adapter on the Hub, which is small, and return its folder."""
    folder = snapshot(repo, revision, [*_SMALL_FILES, on_disk.ADAPTER, "adapter_model.bin"])
    return folder, Remote(repo, folder.name)


def fetch(remote: Remote, folder: Path, files: Iterable[Path]) -> None:
    """Fetch the files of a model that are not in the cache yet."""
    names = [str(file.relative_to(folder)) for file in files if not file.exists()]
    if names:
        snapshot(remote.repo, remote.commit, names)
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError("C503", "the Hub didn't send it", folder / name)


def _weights(folder: Path, remote: Remote) -> list[str]:
    """Return the files of weights, as transformers chooses them; empty without any.

    The Hub is asked for the names of files if the cache doesn't tell. Raises CheckpointError (C104)
    for several GGUF files, before any is fetched.
    """
    if _known(folder, remote, on_disk.SINGLE):
        return [on_disk.SINGLE]
    index = folder / on_disk.INDEX
    shards = sorted(set(on_disk.weight_map(index).values())) if index.exists() else []
    if shards and all(_known(folder, remote, name) for name in shards):
        return shards
    try:
        names = _listed(remote)
    except CheckpointError:  # offline
        names = [path.name for path in folder.iterdir()]
        if not shards and not any(map(on_disk.is_weights, names)):
            raise
    if on_disk.SINGLE in names or shards:
        return [on_disk.SINGLE] if on_disk.SINGLE in names else shards
    if BIN_SINGLE in names:
        return [BIN_SINGLE]
    if BIN_INDEX in names:
        return sorted(set(on_disk.weight_map(folder / BIN_INDEX).values()))
    file = on_disk.only_gguf(Path(remote.repo), names)
    return [] if file is None else [file.name]


def _known(folder: Path, remote: Remote, name: str) -> bool:
    """Return whether a file of weights, or its header, is in the cache."""
    return (folder / name).exists() or _kept(remote, name).exists()


def _listed(remote: Remote) -> list[str]:
    """Return the names of a repository's files, without files in folders."""
    from huggingface_hub import HfApi

    with talking(remote.repo, remote.commit):
        names = HfApi().list_repo_files(remote.repo, revision=remote.commit)
    return [name for name in names if "/" not in name]


def _header(folder: Path, remote: Remote, file: Path) -> dict[str, TensorInfo]:
    """Return the header of a file on the Hub; its bytes are checked once the file is here.

    It is kept, since a commit never changes, so that a plan that was compiled once compiles
    offline, without files that it does not need.
    """
    from gptailor.checkpoint.cache_folder import keep_result, kept_json  # most files are here

    name = file.relative_to(folder).as_posix()
    kept = _kept(remote, name)
    if not (header := kept_json(kept)):
        header = _asked(remote, name)
        keep_result(kept, header)
    return _infos(file, header)


def _kept(remote: Remote, name: str) -> Path:
    """Return the path for the header of a file, in the Hub library's place for other data."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    place = Path(HF_ASSETS_CACHE) / "gptailor" / "headers" / remote.repo.replace("/", "--")
    return place / remote.commit / f"{name.replace('/', '--')}.json"


def _asked(remote: Remote, name: str) -> dict[str, Any]:
    """Return the dtype and the shape of each tensor in a file, by range requests."""
    from huggingface_hub import HfApi, errors

    place = Path(remote.repo) / name
    with talking(remote.repo, remote.commit):
        try:
            metadata = HfApi().parse_safetensors_file_metadata(
                remote.repo, name, revision=remote.commit
            )
        except errors.EntryNotFoundError as error:
            raise CheckpointError("C503", "is not in the repository", place) from error
        except (errors.SafetensorsParsingError, AttributeError, TypeError, ValueError) as error:
            message = "has no header that can be read on the Hub"
            raise CheckpointError("C204", message, place) from error
    return {name: [t.dtype, t.shape] for name, t in metadata.tensors.items()}


def _infos(file: Path, header: Mapping[str, Any]) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        match entry:
            case [str(dtype), [*shape]] if dtype in DTYPE_BITS and all(
                type(size) is int and size >= 0 for size in shape
            ):
                infos[name] = TensorInfo(TensorSpec(name, dtype, tuple(shape)), file, -1)
            case _:
                message = f"has {quoted(name)} without a known dtype and a shape"
                raise CheckpointError("C206", message, file)
    return infos


@contextmanager
def talking(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub's errors into a `CheckpointError`, without bars if there isn't a terminal."""
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]  # of the library under it
    at = f" at '{revision}'" if revision else ""
    try:
        with _quiet():
            yield
    except (errors.HFValidationError, OSError, http_error) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        kinds = (kind.__name__ for kind in type(error).__mro__)
        code, text, known = next((_ERRORS[kind] for kind in kinds if kind in _ERRORS), _OTHER_ERROR)
        message = text.format(at=at, line=line, revision=revision)
        help_ = _offline() if known is None else known
        raise CheckpointError(code, message, Path(repo), help_) from error


_OTHER_ERROR = ("C503", "not available from the Hub{at}: {line}", None)
_NOT_CACHED = ("C503", "is not in the local cache{at}, and the Hub can't be reached", None)
_LOG_IN = "log in by 'hf auth login' or HF_TOKEN"
_ERRORS: Mapping[str, tuple[str, str, str | None]] = {
    "GatedRepoError": ("C501", "is gated on the Hub", f"ask for access on its page, and {_LOG_IN}"),
    "RepositoryNotFoundError": ("C501", "is not on the Hub", f"if it is private, {_LOG_IN}"),
    "RevisionNotFoundError": ("C502", "has no revision '{revision}' on the Hub", ""),
    "HFValidationError": ("C501", "is not a valid Hub id", ""),
    "LocalEntryNotFoundError": _NOT_CACHED,
    "OfflineModeIsEnabled": _NOT_CACHED,
    "OSError": ("C503", "not available from the Hub{at}: {line}", ""),
}
"""Codes, messages and help by the names of the Hub library's errors; None: help about offline."""


@contextmanager
def _quiet() -> Iterator[None]:
    utils: Any = importlib.import_module("huggingface_hub.utils")  # it exports without saying so
    quiet = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if quiet:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            utils.enable_progress_bars()


def _offline() -> str:
    folder = "give a folder by --model NAME=PATH"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return f"HF_HUB_OFFLINE is set; unset it, or {folder}"
    return f"check the connection, or {folder}"
