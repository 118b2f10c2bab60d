"""The reader of a compiled GGUF file that is verified: `CompiledGguf`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError, shown
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest
from gptailor.checkpoint.write.kept import json_digest
from gptailor.output import output as out
from gptailor.output.differences import Fact, FactKind, Facts, Measurement, alone
from gptailor.output.gguf.file import (
    LOCK_KEY,
    PLAN_KEY,
    QUANTIZE_KEY,
    TEXT_KEY,
    GgufFile,
    held,
)
from gptailor.output.lock import parse_lock
from gptailor.output.verification import CompiledOutput, DigestedTensors, Findings
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared

if TYPE_CHECKING:
    from gptailor.evaluation.fits.bridge.states import CalibrationText
    from gptailor.evaluation.fits.repair import Fitted


@final
class CompiledGguf(CompiledOutput):
    """The reader of a compiled GGUF file. Raises CheckpointError (C109) for another file."""

    no_plan = f"the file has no {PLAN_KEY}"
    no_lock = "the file has no lock to compare them with"

    _file: GgufFile
    """The file that the plan makes, once it is planned."""

    def __init__(self, path: Path) -> None:
        self.path = self.plan_path = path
        header = read_gguf(path)
        self._facts = header.facts
        self.plan_text = self._text(PLAN_KEY)
        lock = self._text(LOCK_KEY)
        self.lock = None if lock is None else parse_lock(lock, path)
        gguf = None if self.lock is None else self.lock.gguf
        self.locked = None if gguf is None else Measurement.of_gguf(gguf)
        self.settings = {
            "metadata": _values(self._facts, path),
            "metadata digest": alone("metadata", json_digest(held(self._facts)), path=path),
        }
        tensors = header.tensors

        def stretch(spec: TensorSpec) -> ByteRange:
            return ByteRange(path, tensors[spec.name].offset, spec.size)

        def digest(spec: TensorSpec, sha256: str) -> TensorDigest:
            tensor = tensors[spec.name]
            return TensorDigest(dtype=tensor.kind.name, shape=tensor.shape, sha256=sha256)

        specs = [TensorSpec(name, "U8", (tensor.size,)) for name, tensor in tensors.items()]
        self.tensors = DigestedTensors(specs, stretch, digest)

    def _text(self, key: str) -> bytes | None:
        text = self._facts.get(key)
        return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else None

    def planned(
        self, prepared: Prepared | None, plan: Plan | None, findings: Findings
    ) -> Mapping[FactKind, Facts] | None:
        """Return the plan's metadata; None if it makes no GGUF file."""
        if prepared is None:
            return None
        quantize = self._facts.get(QUANTIZE_KEY)
        kind = quantize if isinstance(quantize, str) else None
        try:
            self._file = GgufFile(prepared, self.path, kind, self._importance_text(prepared))
        except (CheckpointError, CalibrationError, ValueError) as error:
            message = str(error) if isinstance(error, ValueError) else error.message
            findings.unverified.append(f"what the plan makes: {message}")
            return None
        if self._file.weighted:
            self.decided = "fitted, healed or weighted"
        findings.compared.append("the metadata")
        return {"metadata": _values(self._file.facts, self.path)}

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

    def fitted_names(self, prepared: Prepared) -> frozenset[str]:
        """Return the names of the tensors that texts decide: fitted, healed or weighted ones."""
        fitted, tensors = prepared.compiled.program.fitted, self._file.tensors
        fitted |= prepared.refitted.keys()
        names = {name for name, tensor in tensors.items() if tensor.source.name in fitted}
        return self._file.weighted | names

    def remade(
        self, prepared: Prepared, fitted: "Fitted | None", skipped: Collection[str]
    ) -> DigestedTensors:
        """Return the tensors that the plan makes, except those `skipped`."""
        file, importance = self._file, None
        file.prepared = prepared  # its inner plans are fitted
        if file.text is not None and file.weighted - set(skipped):
            from gptailor.evaluation.fits.importance import importance_matrix  # imports torch

            importance = importance_matrix(prepared, file.text, fitted, anew=True)
        specs = [tensor.spec for name, tensor in file.tensors.items() if name not in skipped]
        payloads = file.payloads(
            out.payloads(prepared.compiled.program.outputs, fitted=fitted), importance=importance
        )
        return DigestedTensors(
            specs, payloads, lambda spec, sha: file.digest(spec.name, sha, fitted, importance)
        )


def _values(facts: Mapping[str, Any], path: Path) -> Facts:
    """Return the metadata that a lock holds a file to."""
    return {("", key): Fact((text,), shown(facts[key]), path) for key, text in held(facts).items()}
