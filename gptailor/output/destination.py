"""The place that a compiled plan is written to: a model's folder, or one GGUF file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from gptailor.checkpoint.files import is_gguf, refuse_changed
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.checkpoint.write.output_file import ByteProgress, Payload
from gptailor.checkpoint.write.writer import free_space, write_checkpoint
from gptailor.output.lock import Lock, LockedGguf
from gptailor.output.lock_recording import Recording, refuse_early
from gptailor.output.output import side_files
from gptailor.output.update import Update, planned_update, record_next, record_written
from gptailor.prepare import Prepared

if TYPE_CHECKING:
    from gptailor.evaluation.fits.importance import ImportanceMatrix
    from gptailor.evaluation.fits.repair import Fitted


@final
@dataclass(frozen=True)
class Contents:
    """The contents of all outputs of a plan, and the conditions of their writing.

    `payload_of` gives the bytes of each tensor of the program. `fitted` are the results of bridges
    and healing, for the model card. `importance` is the importance matrix of GGUF files.
    """

    payload_of: Callable[[TensorSpec], Payload]
    fitted: "Fitted | None"
    importance: "ImportanceMatrix | None"
    force: bool
    threads: int | None


class Destination(ABC):
    """A place for the output of a prepared plan. Nothing is computed or written by making it."""

    magic: ClassVar[bytes] = b""
    """The first bytes of an output that is one file; none of a folder."""

    def __init__(self, prepared: Prepared, path: Path) -> None:
        self.prepared = prepared
        self.path = path
        self.notes: list[str] = []
        """Remarks for people on differences that are no faults."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The bytes that the output takes on the disk, without a lock."""

    @property
    @abstractmethod
    def weights_size(self) -> int:
        """The bytes that people are shown: a folder's tensors, or the whole GGUF file."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """The names of the files with weights."""

    @abstractmethod
    def write(
        self,
        contents: Contents,
        update: Update | None,
        recording: Recording | None,
        progress: ByteProgress,
    ) -> LockedGguf | None:
        """Write the output, all or nothing; return the lock's entry for a GGUF file.

        `update` is the difference to the output that is replaced, if gptailor wrote it. `recording`
        takes down the digests for a lock. `progress` receives bytes of the folder that the plan
        makes, whatever the destination is. Raises CheckpointError.
        """

    def planned_update(self) -> Update | None:
        """Return the difference to an output that gptailor wrote here before; None for none.

        Raises TargetExists (C301) for one that somebody changed since then.
        """
        return planned_update(self.prepared, self.path)

    def refuse_differing(self, lock: Lock) -> None:
        """Raise CheckpointError (C703 to C705) for early known differences from a lock."""
        refuse_early(self.prepared, lock)

    @property
    def protected(self) -> set[Path]:
        """The folders and GGUF files that the output is made from, which must stay."""
        checkpoints = [model.checkpoint for model in self.prepared.models.values()]
        files = [file for checkpoint in checkpoints for file in checkpoint.files]
        folders = {checkpoint.folder for checkpoint in checkpoints}
        return folders | {file if is_gguf(file) else file.parent for file in files}


def lack_of_room(destinations: Sequence[Destination]) -> str:
    """Return words on a disk without room for the outputs in one folder, or nothing."""
    size, free = sum(each.size for each in destinations), free_space(destinations[0].path)
    return "" if free >= size else f"the output takes {size:,} bytes, but {free:,} are free"


@final
class ModelFolder(Destination):
    """A Hugging Face folder: shards of weights, configuration, tokenizer, card, plan and lock."""

    @property
    def size(self) -> int:
        """The bytes of the shards."""
        return self.prepared.size

    @property
    def weights_size(self) -> int:
        """The bytes of all tensors."""
        return self.prepared.compiled.program.size

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the shards."""
        return tuple(shard.name for shard in self.prepared.shards)

    def write(
        self,
        contents: Contents,
        update: Update | None,
        recording: Recording | None,
        progress: ByteProgress,
    ) -> None:
        """Write the folder, all or nothing."""
        payload_of = contents.payload_of

        def last_files() -> Mapping[str, bytes]:
            refuse_changed(self.prepared.stamps)
            return {} if recording is None else recording.files(self.path)

        def on_written(spec: TensorSpec, sha256: str) -> None:
            assert recording is not None
            if update is not None:
                update.refuse_damaged(self.path, spec, sha256)
            recording.add_tensor(spec, sha256)

        def before_swap(new: Path) -> None:
            if update is not None:
                update.refuse_changed(self.path)
            record_next(self.prepared, self.path, new, recording.tensors if recording else {})

        write_checkpoint(
            self.path,
            self.prepared.shards,
            payload_of if update is None else update.reusing(self.path, payload_of),
            side_files(self.prepared, self.path, contents.fitted),
            force=contents.force or update is not None,
            progress=progress,
            protected=self.protected,
            threads=contents.threads,
            on_written=None if recording is None else on_written,
            finish=last_files,
            before_swap=before_swap,
        )
        record_written(self.path)
