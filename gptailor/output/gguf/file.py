"""The one GGUF file of a plan, with the lock in its header: as planned, and as written."""

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, final

import gptailor
from gptailor.checkpoint.cache_folder import json_digest
from gptailor.checkpoint.files import CheckpointError, quoted, refuse_changed, shown
from gptailor.checkpoint.formats.gguf.header import PLAN_KEY, read_gguf
from gptailor.checkpoint.formats.gguf.kinds import (
    FILE_TYPES,
    KINDS,
    is_weighted,
    quantised_kind,
)
from gptailor.checkpoint.models import is_remote
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import tensor_digests
from gptailor.checkpoint.write.output_file import ByteProgress, OutputFile, Payload
from gptailor.checkpoint.write.tensors import Crew, Shard, digests_of, fill_shard
from gptailor.checkpoint.write.writer import located, new_output
from gptailor.evaluation.gguf_contents import GGUF_ALIGNMENT, PADDING_KEY, gguf_contents, padded
from gptailor.lang.format import format_plan
from gptailor.output import output as out
from gptailor.output.destination import (
    CompiledOutput,
    Contents,
    Destination,
    Payloads,
    Sketches,
)
from gptailor.output.differences import (
    Fact,
    FactKind,
    Facts,
    Measurement,
    alone,
    gguf_differences,
    refuse,
)
from gptailor.output.gguf.values import converted, gguf_package, header_bytes
from gptailor.output.inputs import licence_of, lowest_base
from gptailor.output.lock import Lock, LockedGguf, LockedText, parse_lock
from gptailor.output.lock_recording import Recording, plan_digest
from gptailor.output.output import path_from, used_models, used_plan_text
from gptailor.output.update import Update, record_written
from gptailor.plan.doors import Door
from gptailor.plan.faults import listed
from gptailor.plan.optional_packages import how_to_install
from gptailor.prepare import Prepared, all_declared
from gptailor.program.gguf.architecture import GgufFacts
from gptailor.program.gguf.tensors import GgufTensorPlan

if TYPE_CHECKING:
    from torch import Tensor

    from gptailor.evaluation.fits.bridge.states import CalibrationText
    from gptailor.evaluation.fits.fit import Fitted
    from gptailor.evaluation.fits.importance import ImportanceMatrix

COMPANIONS: Door[Callable[["GgufFile"], Iterable[str]]] = Door(
    "companions", "companion", FunctionType, {}
)
"""Functions that write a file beside a written GGUF file, and return notes: `modelfile`."""

LOCK_KEY = "gptailor.lock"
QUANTIZE_KEY = "gptailor.quantize"
TEXT_KEY = "quantize.imatrix.dataset"

_UNLOCKED = frozenset(
    {
        "general.name",
        "general.description",
        "general.license",
        PLAN_KEY,
        LOCK_KEY,
        TEXT_KEY,
        PADDING_KEY,
    }
)
"""Keys that a lock ignores: the file's name, gptailor's version, the license, paths, and the lock.
"""
_PARENTS = "general.base_model."
"""The beginning of keys that a lock ignores: a model of the Hub may be read from another place."""


def _require_library(kinds: Iterable[str], path: Path, *, weighted: bool) -> None:
    """Raise CheckpointError (C110) for a type that only llama.cpp's library can quantise to."""
    from gptailor.output.gguf.quantise import needs_library

    lacking = sorted(
        kind.lower() for kind in kinds if needs_library(KINDS[kind], weighted=weighted)
    )
    if lacking:
        matrix = " with an importance matrix" if weighted else ""
        raise CheckpointError(
            "C110",
            f"{listed(lacking)}{matrix} needs the package 'xllamacpp'",
            path,
            how_to_install("gguf"),
        )


@final
class GgufFile(Destination):
    """One GGUF file for llama.cpp: its metadata and tensors, no value computed.

    `text` is the text of an importance matrix; it is None for types that the matrix doesn't change.
    Raises CheckpointError: C110 without the package `gguf`, C306 for a model or a value that
    llama.cpp or the format doesn't have; ValueError for an unknown type.
    """

    magic = b"GGUF"

    def __init__(
        self,
        prepared: Prepared,
        path: Path,
        quantize: str | None = None,
        text: "CalibrationText | None" = None,
    ) -> None:
        super().__init__(prepared, path)
        self.quantize = quantised_kind(quantize)
        self.text = text if is_weighted(self.quantize) else None
        gguf_package(path)
        weighted = self.text is not None
        contents = gguf_contents(
            prepared.checked, prepared.compiled, self.quantize, path, weighted=weighted
        )
        self._architecture, planned = contents.architecture, contents.tensors
        self.notes = [*contents.notes, *self._misnamed(planned)]
        _require_library({tensor.spec.dtype for tensor in planned}, path, weighted=weighted)
        self.tensors = {tensor.spec.name: tensor for tensor in planned}
        self._zeros: Counter[str] = Counter()
        about = {**self._general(), PLAN_KEY: used_plan_text(prepared, path.parent)}
        if self.quantize is not None:
            about[QUANTIZE_KEY] = self.quantize
        if self.text is not None:
            about |= {
                "quantize.imatrix.file": "gptailor computed the matrix",
                TEXT_KEY: path_from(self.path.parent, self.text.path),
                "quantize.imatrix.entries_count": sum(t.in_layer for t in planned),
                "quantize.imatrix.chunks_count": sum(len(b.tokens) for b in self.text.batches),
            }
            self.notes.append(f"quantised with {self._matrix_in_words(self.text)}")
        about = padded(about, format_plan(prepared.plan))
        self.facts: GgufFacts = {**about, **self._architecture.facts, **contents.vocabulary}
        if self.weighted:
            self.decided_words = "fitted, healed or weighted"
        shard = self._shard()
        self.shards, self.weights_size = (shard,), shard.size

    def _misnamed(self, tensors: Iterable[GgufTensorPlan]) -> Iterator[str]:
        """Yield a note if the file's name ends with a type other than the file's."""
        _, *ends = re.split(r"[-. ]", self.path.stem.upper())
        kinds = {tensor.spec.dtype for tensor in tensors if len(tensor.spec.shape) > 1}
        types = [self.quantize] if self.quantize else sorted(kinds)
        if ends and ends[-1] in FILE_TYPES and ends[-1] not in types:
            yield (
                f"{self.path.name} has the type {listed(types)}: "
                f"--quantize {ends[-1].lower()} makes the type of the name"
            )

    def _shard(self, lock: Lock | None = None) -> Shard:
        """Return the file, with a lock in its header if there is one."""
        facts = self.facts if lock is None else self.facts | {LOCK_KEY: lock.text()}
        specs = tuple(tensor.spec for tensor in self.tensors.values())
        header = header_bytes(self._architecture.name, facts, specs, self.path)
        return Shard(self.path.name, specs, header, GGUF_ALIGNMENT)

    def payloads(
        self,
        make: Callable[[TensorSpec], Payload],
        on_digest: Callable[[TensorSpec, str], None] | None = None,
        importance: "ImportanceMatrix | None" = None,
    ) -> Callable[[TensorSpec], Payload]:
        """Return a function to the bytes of a tensor of the file.

        `make` returns the bytes of a tensor of the program. `on_digest` receives the sha256 of
        each program's tensor that is converted. A matrix without importance, or with importance 0
        in all columns, is quantised as without an importance matrix.
        """

        def payload_of(spec: TensorSpec) -> Payload:
            tensor = self.tensors[spec.name]
            source = tensor.source
            if tensor.content:
                return [tensor.content]
            if tensor.is_copy:
                return make(source)
            columns = self._columns(tensor, importance)
            if columns is not None and not bool(columns.any()):
                columns = None
            of_source = None if on_digest is None else partial(on_digest, source)
            return converted(tensor, make(source), of_source, self.path, columns, self._zeros)

        return payload_of

    def _note_zeros(self) -> None:
        """Note the written blocks with weights too small for their type."""
        if names := [name for name in self.tensors if name in self._zeros]:
            self.notes.append(
                "tensors with blocks that became 0, because their weights are too small for the "
                f"type: {len(names)}, blocks: {self._zeros.total()}, the first in "
                f"{quoted(names[0])} ({self.tensors[names[0]].spec.dtype}); bf16 keeps such weights"
            )

    # --------------------------------------------------------------------------------------- facts

    @cached_property
    def weighted(self) -> frozenset[str]:
        """The names of the tensors that depend on the importance matrix."""
        tensors = self.tensors.items() if self.text is not None else ()
        return frozenset(n for n, t in tensors if t.in_layer and KINDS[t.spec.dtype].weighted)

    def _columns(
        self, tensor: GgufTensorPlan, importance: "ImportanceMatrix | None"
    ) -> "Tensor | None":
        if importance is None or tensor.spec.name not in self.weighted:
            return None
        return importance.get(tensor.source.name)

    @staticmethod
    def _matrix_in_words(text: "CalibrationText") -> str:
        return f"an importance matrix of {text.tokens:,} tokens of {quoted(text.path.name)}"

    def _general(self) -> GgufFacts:
        plan, base = self.prepared.plan, self.prepared.models[lowest_base(self.prepared)]
        licence = licence_of(base.checkpoint.folder)
        origin = f"gptailor {gptailor.__version__} from a plan of the sha256 {plan_digest(plan)}"
        if self.text is not None:
            origin += f", quantised with {self._matrix_in_words(self.text)}"
        entries: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if len(tensor.spec.shape) > 1:
                entries[tensor.spec.dtype] += tensor.source.elements
        most = self.quantize or max(entries, key=lambda kind: entries[kind])
        return {
            "general.architecture": self._architecture.name,
            "general.type": "model",
            "general.name": self.path.stem,
            "general.description": f"Compiled by {origin}",
            **({} if licence is None else {"general.license": licence}),
            **self._parents(),
            "general.quantization_version": 2,  # of llama.cpp's blocks
            "general.file_type": FILE_TYPES[most].number,
        }

    def _parents(self) -> GgufFacts:
        """Return the names of the models of the Hub."""
        models = all_declared(self.prepared.plan.models, self.prepared.models)
        hub = [m.source for m in models.values() if m.on is None and is_remote(m)]
        facts: GgufFacts = {f"{_PARENTS}count": len(hub)} if hub else {}
        for i, source in enumerate(hub):
            owner, _, name = source.rpartition("/")
            facts[f"{_PARENTS}{i}.name"] = name
            if owner:
                facts[f"{_PARENTS}{i}.organization"] = owner
            facts[f"{_PARENTS}{i}.repo_url"] = f"https://huggingface.co/{source}"
        return facts

    # ---------------------------------------------------------------------------------- the writing

    def _sketches(
        self, of_program: Sketches, importance: "ImportanceMatrix | None"
    ) -> dict[str, tuple[float, ...]]:
        """Return the sketches of the tensors that fits or the importance matrix decide.

        `of_program` are the sketches of the program's tensors. A sketch joins the fitted tensor's
        sketch and the equally long sketch of its columns' importance. Both decide the bytes.
        """
        found = {}
        for name, tensor in self.tensors.items():
            numbers = of_program.get(tensor.source.name, ())
            if (columns := self._columns(tensor, importance)) is not None:
                from gptailor.program.sketch import sketch  # imports torch

                own = sketch(columns)
                scale = math.hypot(*numbers) / (math.hypot(*own) or 1.0) if numbers else 1.0
                numbers = (*numbers, *(scale * number for number in own))
            if numbers:
                found[name] = numbers
        return found

    def locked(self, sha256: Mapping[str, str], sketches: Sketches) -> LockedGguf:
        """Return the file's entry in a lock, from the digests of its tensors as far as known."""
        text = self.text
        specs = [tensor.spec for tensor in self.tensors.values()]
        return LockedGguf(
            quantize=self.quantize,
            imatrix=None if text is None else LockedText(file=text.digest, tokens=text.tokens),
            facts=json_digest(held(self.facts)),
            tensors=tensor_digests(specs, sha256, sketches),
        )

    def refuse_differing(self, lock: Lock) -> None:
        """Raise CheckpointError (C703 to C705) for early known differences from a lock.

        They are a folder's differences, and differences of the metadata, and of the tensors' types
        and shapes.
        """
        super().refuse_differing(lock)
        refuse(gguf_differences(lock, self.locked({}, {})), lock)

    def planned_update(self) -> Update | None:
        """Return the difference to the file that gptailor wrote here before. It is made anew."""
        update = super().planned_update()
        if update is None:
            return None
        header, changes = read_gguf(self.path), update.changes
        before = {name: tensor.spec.dtype for name, tensor in header.tensors.items()}
        if not changes and before != {n: t.spec.dtype for n, t in self.tensors.items()}:
            changes = (("~", "types of tensors"),)
        locked = LOCK_KEY in header.facts
        return replace(
            update, changes=changes, computed=self.weights_size, copied=0, locked=locked, whole=True
        )

    def plan_lock(self) -> None:
        """Count the lock in the planned size; a lock of fitted tensors isn't known before."""
        if self.decided or self.prepared.inner_plans:
            self.notes.append("its size has no lock, which takes more bytes")
        else:
            self._count_lock(Recording(self.prepared))

    def _count_lock(
        self, recording: Recording, importance: "ImportanceMatrix | None" = None
    ) -> Shard:
        """Return the file with a lock without digests, and count it in `weights_size`."""
        recording.gguf = self.locked({}, self._sketches(recording.sketches, importance))
        shard = self._shard(recording.draft(used_models(self.prepared, self.path.parent)))
        self.notes.append(f"its size contains the lock, {shard.size - self.weights_size:,} bytes")
        self.weights_size = shard.size
        return shard

    def write(
        self, contents: Contents, recording: Recording | None, progress: ByteProgress
    ) -> None:
        """Write the file, all or nothing.

        The lock's length is known before its digests, so that the header can be filled in last.
        """
        importance = None if self.text is None else contents.importance[self.text.path]
        (shard,) = self.shards
        sha256: dict[str, str] = {}
        models = used_models(self.prepared, self.path.parent)

        def on_written(spec: TensorSpec, digest: str) -> None:
            assert recording is not None
            tensor = self.tensors[spec.name]
            sha256[spec.name] = digest
            if tensor.is_copy:
                recording.add_tensor(tensor.source, digest)

        if recording is not None:
            shard = self._count_lock(recording, importance)
        on_digest = None if recording is None else recording.add_tensor
        payload_of = self.payloads(contents.payload_of, on_digest, importance)
        crew = Crew(contents.threads)
        count_bytes = crew.exclusive(_scaled(progress, shard.size, self.prepared.size))
        with (
            new_output(self.path, self.magic, force=self.force, protected=self.protected) as new,
            OutputFile(new, located(self.path), shard.size, count_bytes) as file,
        ):
            fill_shard(file, shard, payload_of, crew, None if recording is None else on_written)
            refuse_changed(self.prepared.stamps)
            if recording is not None:
                written = {tensor.source for tensor in self.tensors.values()}
                specs = [output.spec for output in self.prepared.compiled.program.outputs]
                left = {spec: contents.payload_of(spec) for spec in specs if spec not in written}
                recording.sha256 |= digests_of(left, crew)  # a lock has all, as a folder's
                sketches = self._sketches(recording.sketches, importance)
                recording.gguf = self.locked(sha256, sketches)
                header = self._shard(recording.lock(models)).header
                assert len(header) == len(shard.header), "the draft differs only in digests"
                file.write(header, 0)
            if self.update is not None:
                self.update.refuse_changed(self.path)
        # Its time of change is the time of the rename.
        record_written(self.prepared, self.path, self.path, {})
        self._note_zeros()
        if (companion := COMPANIONS.get("modelfile")) is not None:
            self.notes += companion(self)

    # ----------------------------------------------------------------------------- the verification

    def expected(self) -> tuple[Mapping[FactKind, Facts], Sequence[str]]:
        """Return the metadata that the plan makes."""
        return {"metadata": _metadata_values(self.facts, self.path)}, ["the metadata"]

    @property
    def decided(self) -> frozenset[str]:
        """The names of the tensors that texts decide: fitted, healed or weighted ones."""
        fitted = self.prepared.compiled.program.fitted | self.prepared.refitted.keys()
        names = {name for name, tensor in self.tensors.items() if tensor.source.name in fitted}
        return self.weighted | names

    def remade(
        self, fitted: "Fitted | None", skipped: Collection[str]
    ) -> tuple[Payloads, Sketches]:
        """Return the tensors that the plan makes, except those `skipped`, and their sketches."""
        importance = None
        if self.text is not None and self.weighted - set(skipped):
            from gptailor.evaluation.fits.importance import importance_matrix  # imports torch

            importance = importance_matrix(self.prepared, self.text, fitted, anew=True)
        tensors = [tensor for name, tensor in self.tensors.items() if name not in skipped]
        names = [tensor.source.name for tensor in tensors]
        sketches = out.fit_sketches(self.prepared, fitted, names)
        payloads = out.payloads(self.prepared.compiled.program.outputs, fitted=fitted)
        payload_of = self.payloads(payloads, importance=importance)
        made = {tensor.spec: payload_of(tensor.spec) for tensor in tensors}
        return made, self._sketches(sketches, importance)


def _scaled(progress: ByteProgress, size: int, total: int) -> ByteProgress:
    """Return a progress that counts `size` bytes and passes on `total` in proportion."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        progress(done * total // size - before * total // size)

    return report


def held(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that a lock fixes: each value as text, numbers as the file has them."""
    return {
        key: repr(_stored(value))
        for key, value in facts.items()
        if key not in _UNLOCKED and not key.startswith(_PARENTS)
    }


def _stored(value: Any) -> Any:
    """Return a value as read back from the file: a float of 32 bits, a tuple for a list."""
    if isinstance(value, float):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    if isinstance(value, list | tuple):
        return tuple(map(_stored, value))
    return value


@final
class CompiledGguf(CompiledOutput):
    """The reader of a compiled GGUF file. Raises CheckpointError (C109) for another file.

    It has its own lock, or one that it is `held_to`.
    """

    no_plan = f"the file has no {PLAN_KEY}"
    no_lock = "the file has no lock to compare them with"

    def __init__(self, path: Path, held_to: Lock | None = None) -> None:
        self.path = self.plan_path = path
        header = read_gguf(path)
        self._facts = header.facts
        self.plan_text = self._text(PLAN_KEY)
        lock = self._text(LOCK_KEY)
        self.lock = held_to or (None if lock is None else parse_lock(lock, path))
        gguf = None if self.lock is None else self.lock.gguf
        self.locked = None if gguf is None else Measurement.of_gguf(gguf)
        self.settings = {
            "metadata": _metadata_values(self._facts, path),
            "metadata digest": alone("metadata", json_digest(held(self._facts)), path=path),
        }
        infos = header.tensors.values()
        self.tensors = {t.spec: ByteRange(path, t.offset, t.spec.size) for t in infos}

    def _text(self, key: str) -> bytes | None:
        text = self._facts.get(key)
        return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else None

    def destination(self, prepared: Prepared) -> Destination:
        """Return the file that a prepared plan makes here.

        Raises CalibrationError for an unusable text, CheckpointError and ValueError for a plan that
        makes no such file.
        """
        quantize = self._facts.get(QUANTIZE_KEY)
        kind = quantize if isinstance(quantize, str) else None
        return GgufFile(prepared, self.path, kind, self._importance_text(prepared))

    def _importance_text(self, prepared: Prepared) -> "CalibrationText | None":
        """Return the text of the file's importance matrix, which a lock fixes.

        Raises CalibrationError for an unusable text, CheckpointError (C704) for another one.
        """
        text = self._facts.get(TEXT_KEY)
        if not isinstance(text, str):
            return None
        from gptailor.evaluation.fits.importance import importance_text  # imports torch

        found = importance_text(prepared, self.path.parent / text)
        locked = None if self.lock is None or self.lock.gguf is None else self.lock.gguf.imatrix
        if locked is not None and found.digest != locked.file:
            raise CheckpointError(
                "C704",
                f"the text of the importance matrix is not the locked one ({found.path})",
                found.path,
            )
        return found


def _metadata_values(facts: Mapping[str, Any], path: Path) -> Facts:
    """Return the metadata that a lock holds a file to."""
    return {("", key): Fact((text,), shown(facts[key]), path) for key, text in held(facts).items()}
