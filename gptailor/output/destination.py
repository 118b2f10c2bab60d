"""The outputs of a compilation, a model's folder or one GGUF file: as planned, and as written."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from gptailor.checkpoint.cache_folder import json_digest
from gptailor.checkpoint.files import (
    CheckpointError,
    is_gguf,
    open_regular,
    refuse_changed,
)
from gptailor.checkpoint.folder import (
    CONFIG,
    PROCESSOR_FILES,
    Checkpoint,
    generation_config,
    open_checkpoint,
    processor_files,
    tokenizer_files,
)
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.tokenizer_settings import files_without_code
from gptailor.checkpoint.write.digest import FileDigest, of_bytes, of_file
from gptailor.checkpoint.write.output_file import ByteProgress, Payload
from gptailor.checkpoint.write.side_folder import TargetExists
from gptailor.checkpoint.write.tensors import Shard
from gptailor.checkpoint.write.writer import (
    check_target,
    new_checkpoint,
    write_files,
)
from gptailor.evaluation.tokenizer_files import is_beside, tokenizer_model_name
from gptailor.output import output as out
from gptailor.output.differences import Difference, Fact, FactKind, Facts, Measurement, alone
from gptailor.output.lock import LOCK_FILE, Lock, LockedGguf, read_lock
from gptailor.output.lock_recording import Recording, refuse_early
from gptailor.output.update import Update, planned_update, record_written
from gptailor.plan.bounds import MOST_BYTES
from gptailor.plan.faults import PLAN_FILE, nearest_path
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared

if TYPE_CHECKING:
    from gptailor.evaluation.fits.bridge.states import CalibrationText
    from gptailor.evaluation.fits.fit import Fitted
    from gptailor.evaluation.fits.importance import ImportanceMatrix

_LONGEST_VALUE = 60
"""Characters of a setting that are shown."""


@final
@dataclass(frozen=True)
class Contents:
    """The contents of all outputs of a plan, and the threads that write them.

    `payload_of` gives the bytes of each tensor of the program. `fitted` are the results of bridges
    and healing, for the model card. `importance` are the importance matrices of GGUF files, by
    their texts.
    """

    payload_of: Callable[[TensorSpec], Payload]
    fitted: "Fitted | None"
    importance: "Mapping[Path, ImportanceMatrix]"
    threads: int | None


Payloads = Mapping[TensorSpec, Payload]
"""Tensors that are read or made, and their bytes."""
Sketches = Mapping[str, tuple[float, ...]]
"""Sketches by the names of tensors."""


# -------------------------------------------------------------------------------------- as planned


class Destination(ABC):
    """A place for the output of a prepared plan. Nothing is computed or written by making it.

    `shards` are the files with weights, without a lock. `weights_size` are the bytes that people
    are shown: a folder's tensors, or the whole GGUF file. `notes` are remarks for people on
    differences that aren't faults. `update` is the difference to an output that gptailor wrote here
    before, once the place is claimed. `decided` are the names of the tensors that texts decide, and
    `decided_words` words for them. A GGUF file has the type `quantize`, and the `text` of its
    importance matrix.
    """

    magic: ClassVar[bytes] = b""
    """The first bytes of an output that is one file; empty for a folder."""
    decided_words = "fitted or healed"
    update: Update | None = None
    quantize: str | None = None
    text: "CalibrationText | None" = None
    force = False
    shards: tuple[Shard, ...]
    weights_size: int

    def __init__(self, prepared: Prepared, path: Path) -> None:
        self.prepared = prepared
        self.path = path
        self.notes: list[str] = []

    @abstractmethod
    def write(
        self, contents: Contents, recording: Recording | None, progress: ByteProgress
    ) -> None:
        """Write the output, all or nothing.

        `recording` takes down the digests for a lock. `progress` receives bytes of the folder that
        the plan makes, whatever the destination is. Raises CheckpointError.
        """

    def claim(self, *, force: bool) -> None:
        """Refuse a place that can't be written, or that holds an output that must stay.

        Raises TargetExists (C301) for an output that somebody changed since gptailor wrote it.
        """
        self.update = None if force else self.planned_update()
        self.force = force or self.update is not None
        check_target(self.path, force=self.force, protected=self.protected, magic=self.magic)

    def planned_update(self) -> Update | None:
        """Return the difference to gptailor's earlier output here; None without such an output."""
        return planned_update(self.prepared, self.path)

    def plan_lock(self) -> None:  # noqa: B027 (a folder's lock isn't in its weights' file)
        """Count a new lock in `weights_size`, if the weights' file contains it."""

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

    @abstractmethod
    def expected(self) -> tuple[Mapping[FactKind, Facts], Sequence[str]]:
        """Return the settings and files that the plan makes, and words for them."""

    @property
    @abstractmethod
    def decided(self) -> frozenset[str]:
        """The names of the tensors that bridges, healing and an importance matrix change."""

    def locked(self, sha256: Mapping[str, str], sketches: Sketches) -> LockedGguf:
        """Return a GGUF file's entry in a lock, from its tensors' digests as far as known."""
        raise NotImplementedError

    @abstractmethod
    def remade(
        self, fitted: "Fitted | None", skipped: Collection[str]
    ) -> tuple[Payloads, Sketches]:
        """Return the tensors that the plan makes, except those `skipped`, and their sketches."""


def gguf_beside(folder: Path, file_type: str) -> Path:
    """Return the path of a GGUF file beside a folder: `out-Q4_K_M.gguf` beside `out`.

    Raises CheckpointError (C306) for a folder without a name.
    """
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 (links stay)
    if not absolute.name:
        message = "GGUF files get the name of the output folder, but this one has no name"
        raise CheckpointError("C306", message, folder, "name another folder")
    beside = folder if folder.name == absolute.name else absolute
    return beside.with_name(f"{absolute.name}-{file_type.upper()}.gguf")


@final
class ModelFolder(Destination):
    """A Hugging Face folder: shards of weights, configuration, tokenizer, card, plan and lock."""

    def __init__(self, prepared: Prepared, path: Path) -> None:
        super().__init__(prepared, path)
        self.shards, self.weights_size = prepared.shards, prepared.compiled.program.size

    def write(
        self, contents: Contents, recording: Recording | None, progress: ByteProgress
    ) -> None:
        """Write the folder, all or nothing."""
        prepared, update = self.prepared, self.update
        files = out.side_files(prepared, self.path, contents.fitted)
        reused = {} if update is None else update.reused

        def payload_of(spec: TensorSpec) -> Payload:
            if (old := reused.get(spec.name)) is None:
                return contents.payload_of(spec)
            return ByteRange(self.path / old.file, old.offset, old.size)

        def on_written(spec: TensorSpec, sha256: str) -> None:
            assert recording is not None
            old = reused.get(spec.name)
            if old is not None and old.sha256 not in (None, sha256):  # the old lock has another
                raise TargetExists(self.path, old.file)
            recording.add_tensor(spec, sha256)

        with new_checkpoint(
            self.path,
            self.shards,
            payload_of,
            force=self.force,
            progress=progress,
            protected=self.protected,
            threads=contents.threads,
            on_written=None if recording is None else on_written,
        ) as new:
            refuse_changed(prepared.stamps)
            if recording is not None:
                lock = recording.lock(out.used_models(prepared, self.path))
                files[LOCK_FILE] = lock.text().encode()
            write_files(new, self.path, files, progress)
            if update is not None:
                update.refuse_changed(self.path)
            record_written(prepared, self.path, new, recording.sha256 if recording else {})

    def expected(self) -> tuple[Mapping[FactKind, Facts], Sequence[str]]:
        """Return the configuration, the tokenizer's files, and how the model generates."""
        files = out.beside_weights(self.prepared)
        beside = {
            name: of_bytes(content) if isinstance(content, bytes) else of_file(content)
            for name, content in (files | files_without_code(files)).items()
        }
        config = _configuration_values(self.prepared.compiled.config, self.path / CONFIG)
        facts: dict[FactKind, Facts] = {"config": config, "beside": _on_files(beside, self.path)}
        return facts, [CONFIG, f"{len(beside)} files of the tokenizer"]

    @property
    def decided(self) -> frozenset[str]:
        """The names of the tensors that bridges and healing change."""
        return self.prepared.compiled.program.fitted.union(self.prepared.refitted)

    def remade(
        self, fitted: "Fitted | None", skipped: Collection[str]
    ) -> tuple[Payloads, Sketches]:
        """Return the tensors that the plan makes, except those `skipped`, and their sketches."""
        program = self.prepared.compiled.program.outputs
        outputs = tuple(output for output in program if output.spec.name not in skipped)
        specs = [output.spec for output in outputs]
        payload_of = out.payloads(outputs, fitted=fitted)
        sketches = out.fit_sketches(self.prepared, fitted, [spec.name for spec in specs])
        return {spec: payload_of(spec) for spec in specs}, sketches


def _configuration_values(config: Mapping[str, Any], path: Path) -> Facts:
    """Return the settings of a configuration, long ones cut where they are shown."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in config.items()}
    most = _LONGEST_VALUE
    return {
        ("", key): Fact((text,), text if len(text) <= most else f"{text[:most]}…", path)
        for key, text in texts.items()
    }


def _on_files(files: Mapping[str, FileDigest], folder: Path) -> Facts:
    """Return the files beside the weights in a folder."""
    return {
        ("", name): Fact((digest.sha256,), path=folder / name) for name, digest in files.items()
    }


# -------------------------------------------------------------------------------------- as written


class CompiledOutput(ABC):
    """A reader of a compiled output: its plan, its lock, and measurements of its content.

    `locked` is the lock's part on such an output, if there is one. `settings` are its configuration
    or metadata, and the files beside the weights. `tensors` are the places of its weights, which
    are not read; `damage` hides all of them, and the settings. `no_plan` and `no_lock`
    are words for people. Without a lock, fits are compared with the `checkpoint`'s tensors.
    """

    no_plan: ClassVar[str]
    no_lock: ClassVar[str]

    path: Path
    plan_path: Path
    plan_text: bytes | None
    lock: Lock | None
    locked: Measurement | None
    tensors: Payloads
    settings: Mapping[FactKind, Facts]
    checkpoint: Checkpoint | None = None
    damage: Difference | None = None

    def by_lock(self, plan: Plan | None) -> tuple[Mapping[FactKind, Facts], Sequence[str]]:
        """Return the settings and files that the lock has of this plan, and words for them."""
        return {}, []

    @abstractmethod
    def destination(self, prepared: Prepared) -> Destination:
        """Return the output that a prepared plan makes here."""


@final
class CompiledFolder(CompiledOutput):
    """The reader of a compiled folder. Raises CheckpointError (C101) for any other path."""

    no_plan = f"there is no {PLAN_FILE}"
    no_lock = f"there is no {LOCK_FILE} to compare them with"

    def __init__(self, folder: Path) -> None:
        if folder.is_file():
            raise CheckpointError(
                "C101",
                "expected a compiled folder or a .gguf file, got another file",
                folder,
                "name the folder that 'gptailor compile' wrote; 'gptailor check' checks a plan",
            )
        if not folder.is_dir():
            raise CheckpointError("C101", "there is no such folder", folder, nearest_path(folder))
        self.path, self.plan_path = folder, folder / PLAN_FILE
        lock = folder / LOCK_FILE
        self.lock = read_lock(lock) if lock.exists() else None
        self.locked = None if self.lock is None else Measurement(tensors=self.lock.tensors)
        self.plan_text = None
        if self.plan_path.exists():
            with open_regular(self.plan_path) as file:
                self.plan_text = file.read(MOST_BYTES + 1)  # a longer one is refused
        try:
            self.checkpoint = open_checkpoint(folder)
            config = self.checkpoint.config
            path = folder / CONFIG
            digest = alone(CONFIG, json_digest(config), CONFIG, path)
            self.settings = {"config": _configuration_values(config, path), "config digest": digest}
        except CheckpointError as error:
            byte = "" if error.offset is None else f", byte {error.offset}"
            message = f"the folder isn't a model: {error.message} ({error.path.name}{byte})"
            self.damage = Difference("file", error.path.name, message, error.path)
        if (output := self.checkpoint) is not None:
            files = (*tokenizer_files(output), *processor_files(output), generation_config(output))
            by_name = {path.relative_to(folder).as_posix(): path for path in files if path}
            digests = {name: of_file(path) for name, path in by_name.items()}
            self.settings = {**self.settings, "beside": _on_files(digests, folder)}
        infos = [] if output is None else output.tensors.values()
        self.tensors = {t.spec: ByteRange(t.file, t.offset, t.spec.size) for t in infos}

    def by_lock(self, plan: Plan | None) -> tuple[Mapping[FactKind, Facts], Sequence[str]]:
        """Return the configuration by the lock, and the files beside the weights.

        A lock has no digest of a file that the plan makes, of a GGUF file's tokenizer, or of an
        inner plan's tokenizer.
        """
        if (lock := self.lock) is None:
            return {}, []
        facts: dict[FactKind, Facts] = {"config digest": alone(CONFIG, lock.config)}
        made = plan is None or plan.chat_template is not None or plan.vocabulary is not None
        if plan is None or made or plan.tokenizer == "union":
            return facts, [CONFIG]

        def files_of(name: str, is_chosen: Callable[[str], bool]) -> dict[str, FileDigest]:
            while (under := plan.models[name].on) is not None:
                name = under
            files = lock.models[name].files if name in lock.models else {}
            return {file: digest for file, digest in files.items() if is_chosen(file)}

        tokenizer = files_of(tokenizer_model_name(plan), is_beside)
        if not tokenizer:
            return facts, [CONFIG]
        beside = tokenizer | files_of("base", PROCESSOR_FILES.__contains__) | lock.stripped
        facts["beside"] = _on_files(beside, self.path)
        return facts, [CONFIG, f"{len(beside)} files of the tokenizer"]

    def destination(self, prepared: Prepared) -> Destination:
        """Return the folder that a prepared plan makes here."""
        return ModelFolder(prepared, self.path)
