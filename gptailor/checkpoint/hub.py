"""Checkpoints on the Hugging Face Hub, through its own library: small files first, weights late.

Opening a model fetches its configuration, tokenizer and index, and reads the headers of weights
that are not in the cache by range requests; `fetch` gets the weights that a program reads. The
user's own cache, token, mirror and offline mode hold (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`).
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptailor.checkpoint.error import CheckpointError
from gptailor.checkpoint.forms import TensorInfo, TensorSpec
from gptailor.checkpoint.source import (
    ADAPTER,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    SINGLE,
    TOKENIZER_FILES,
    Checkpoint,
    open_checkpoint,
    weight_map,
)

SMALL = (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    "adapter_config.json",
    "pytorch_model.bin.index.json",
    "additional_chat_templates/*.jinja",
    *TOKENIZER_FILES,
)
"""What is fetched of every model: all but its weights."""


@dataclass(frozen=True)
class Remote:
    """Where a checkpoint is on the Hub: its id, and the commit that was resolved."""

    repo: str
    commit: str


def snapshot(repo: str, revision: str | None, names: Iterable[str] = SMALL) -> Path:
    """The folder of a revision in the local cache, with these files of it where there are any."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (half a second)

    with _talking(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(names)))


def open_hub(repo: str, revision: str | None) -> tuple[Checkpoint, Remote]:
    """A model on the Hub, without its weights."""
    folder = snapshot(repo, revision)
    remote = Remote(repo, folder.name)
    missing = [name for name in _weights(folder) if not (folder / name).exists()]
    if not missing:
        return open_checkpoint(folder), remote
    found = snapshot(repo, remote.commit, [*SMALL, "*.bin", "*.gguf"]) if _foreign(remote) else None
    if found is not None:
        return open_checkpoint(found), remote
    return _by_headers(folder, remote, missing), remote


def open_adapter(repo: str, revision: str | None) -> tuple[Path, Remote]:
    """An adapter on the Hub, which is small, and fetched whole."""
    folder = snapshot(repo, revision, [*SMALL, ADAPTER, "adapter_model.bin"])
    return folder, Remote(repo, folder.name)


def fetch(remote: Remote, folder: Path, files: Iterable[Path]) -> None:
    """Bring those of a model's files that are not in the cache yet."""
    names = [str(file.relative_to(folder)) for file in files if not file.exists()]
    if names:
        snapshot(remote.repo, remote.commit, names)
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError("C503", "was not to be had from the Hub", folder / name)


def _weights(folder: Path) -> tuple[str, ...]:
    """The names of the weights' files, as far as the small ones tell them."""
    if (folder / INDEX).exists():
        return tuple(sorted(set(weight_map(folder / INDEX).values())))
    return (SINGLE,)


def _foreign(remote: Remote) -> bool:
    """Whether a repository has weights, but none in safetensors."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    with _talking(remote.repo, remote.commit):
        names = HfApi().list_repo_files(remote.repo, revision=remote.commit)
    return not any(name.endswith(".safetensors") for name in names)


def _by_headers(folder: Path, remote: Remote, missing: Iterable[str]) -> Checkpoint:
    """The checkpoint from headers that are read over the network."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    from gptailor.checkpoint.header import read_header  # noqa: PLC0415
    from gptailor.checkpoint.regular import read_object  # noqa: PLC0415

    config = read_object(folder / CONFIG, "C103", duplicate=None)
    tensors: dict[str, TensorInfo] = {}
    files = [folder / name for name in _weights(folder)]
    for file in files:
        if file.exists():
            tensors |= read_header(file)
            continue
        with _talking(remote.repo, remote.commit):
            metadata = HfApi().parse_safetensors_file_metadata(
                remote.repo, str(file.relative_to(folder)), revision=remote.commit
            )
        tensors |= _infos(file, metadata)
    return Checkpoint(folder, config, tensors, tuple(files))


def _infos(file: Path, metadata: Any) -> dict[str, TensorInfo]:
    """What a header says; its bytes are checked again once the file is here."""
    return {
        name: TensorInfo(TensorSpec(name, t.dtype, tuple(t.shape)), file, -1)
        for name, t in metadata.tensors.items()
    }


@contextmanager
def _talking(repo: str, revision: str | None) -> Iterator[None]:
    """The Hub's errors in our words; no bars where there is no terminal."""
    from huggingface_hub import errors  # noqa: PLC0415

    place = Path(repo)
    at = f" at '{revision}'" if revision else ""
    try:
        with _quiet():
            yield
    except errors.GatedRepoError as error:
        help_ = "ask for access on its page, and log in by 'hf auth login' or HF_TOKEN"
        raise CheckpointError("C501", "is gated on the Hub", place, help_) from error
    except errors.RepositoryNotFoundError as error:
        help_ = "if it is private, log in by 'hf auth login' or HF_TOKEN"
        raise CheckpointError("C501", "is not on the Hub", place, help_) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError("C502", f"has no revision '{revision}' on the Hub", place) from error
    except errors.HFValidationError as error:
        raise CheckpointError("C501", "is no id of the Hub", place) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        message = f"is not in the local cache{at}, and the Hub can't be reached"
        raise CheckpointError("C503", message, place, _offline()) from error
    except (errors.HfHubHTTPError, errors.NotASafetensorsRepoError, OSError) as error:
        message = f"could not be had from the Hub{at}: {str(error).splitlines()[0]}"
        raise CheckpointError("C503", message, place) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars where there is no terminal."""
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
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set; unset it, or give a folder by --model NAME=PATH"
    return "check the connection, or give a folder by --model NAME=PATH"
