"""Whether a compiled GGUF file is what the plan and the lock in it say: `GgufVerification`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from gptailor.build import output as out
from gptailor.build.findings import Findings, Verified, differing_plan, has_texts, work_of
from gptailor.build.gguf import LOCK_KEY, PLAN_KEY, QUANTIZE_KEY, GgufFile, facts_digest, held
from gptailor.build.lock import Difference, Lock, differing_tensors, parse_lock
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.formats.gguf_header import Header, read_gguf
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest, of_tensors
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Crew
from gptailor.plan.events import OnEvent, counting_bytes, ignore_events
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared


@final
class GgufVerification:
    """A GGUF file that is to be verified: it, its plan, its lock and the models are opened.

    No weights are read before `run`; `work` are the bytes that it reads and makes. Raises
    CheckpointError: C109 for a file that is no GGUF file, C701 and C702 for a lock that is none.
    """

    def __init__(
        self,
        path: Path,
        *,
        models: ModelPaths | None = None,
        families: Sequence[str | Path] = (),
        tensors_only: bool = False,
    ) -> None:
        self.path = path
        self._on_event: OnEvent = ignore_events
        self.header: Header = read_gguf(path)
        self.tensors_only = tensors_only
        self.found = Findings()
        self.lock = self._read_lock()
        self.plan = self._read_plan()
        if self.plan is not None and families:
            self.plan = self.plan.with_families(families)
        self.prepared: Prepared | None = None
        if self.lock is not None and self.plan is not None:
            self.found.differences += differing_plan(self.plan, self.lock)
        if tensors_only and self.lock is None:
            self.found.unverified.append("the tensors: the file has no lock to compare them with")
        if not tensors_only and self.plan is not None:
            self.prepared = self.found.prepared(self.plan, models, path)

    @property
    def work(self) -> int:
        """The bytes that are to be read and made."""
        size = sum(tensor.size for tensor in self.header.tensors.values())
        return work_of(size, self.prepared, self.lock)

    def _text(self, key: str) -> bytes | None:
        said = self.header.facts.get(key)
        return said.encode("utf-8", "surrogateescape") if isinstance(said, str) else None

    def _read_lock(self) -> Lock | None:
        raw = self._text(LOCK_KEY)
        return parse_lock(raw, self.path) if raw is not None else None

    def _read_plan(self) -> Plan | None:
        raw = self._text(PLAN_KEY)
        if raw is None:
            self.found.unverified.append(f"the plan: the file has no {PLAN_KEY}")
            return None
        return self.found.plan(raw, self.path)

    # ------------------------------------------------------------------------------- with weights

    def run(self, on_event: OnEvent = ignore_events, *, threads: int | None = None) -> Verified:
        """Compare tensors, metadata, the models' files, and what the plan makes."""
        self._on_event = on_event
        crew = Crew(threads)
        told = crew.told(counting_bytes(on_event))
        found = self._digests(crew, told)
        locked = self.lock.gguf if self.lock is not None else None
        if locked is not None:
            self.found.differences += differing_tensors(locked.tensors, found, "the lock")
            self.found.compared.append(f"{len(found)} tensors with the lock")
            if facts_digest(self.header.facts) != locked.facts:
                said = "the file's metadata is not what was locked"
                self.found.differences.append(Difference("config", "metadata", said, self.path))
        elif self.lock is not None:
            self.found.unverified.append("the tensors: the lock was made of a folder")
        if self.prepared is not None:
            self._compare(self.prepared, found, crew, told)
        return self.found.of(self.path)

    def _digests(self, crew: Crew, progress: ByteProgress) -> dict[str, TensorDigest]:
        """Those of the file's tensors."""
        tensors = self.header.tensors
        found: dict[str, TensorDigest] = {}

        def seen(spec: TensorSpec, sha256: str) -> None:
            tensor = tensors[spec.name]
            kind = tensor.kind.name
            found[spec.name] = TensorDigest(dtype=kind, shape=tensor.shape, sha256=sha256)

        def stretch(spec: TensorSpec) -> ByteRange:
            return ByteRange(self.path, tensors[spec.name].offset, spec.size)

        specs = [TensorSpec(name, "U8", (tensor.size,)) for name, tensor in tensors.items()]
        of_tensors(specs, stretch, crew, seen, progress)
        return found

    def _compare(
        self, prepared: Prepared, found: dict[str, TensorDigest], crew: Crew, told: ByteProgress
    ) -> None:
        """Compare with what the plan gives: metadata, and tensors if the inputs are as locked."""
        quantize = self.header.facts.get(QUANTIZE_KEY)
        try:
            file = GgufFile(prepared, self.path, quantize if isinstance(quantize, str) else None)
        except (CheckpointError, ValueError) as error:
            said = error.message if isinstance(error, CheckpointError) else str(error)
            self.found.unverified.append(f"what the plan makes: {said}")
            return
        self.found.differences += _differing_facts(file.facts, self.header.facts, self.path)
        self.found.compared.append("the metadata")
        if not self.found.has_locked_inputs(prepared, self.lock, crew, told):
            return
        left: frozenset[str] = frozenset()
        if not has_texts(prepared):
            left = prepared.compiled.program.fitted
            said = f"{len(left)} bridged or healed tensors: their calibration text is gone"
            self.found.unverified.append(said)
        self._remake(file, found, left, crew, told)

    def _remake(
        self,
        file: GgufFile,
        found: Mapping[str, TensorDigest],
        left: frozenset[str],
        crew: Crew,
        progress: ByteProgress,
    ) -> None:
        """Compare with what the plan makes, in memory, but for the program's tensors in `left`."""
        program = file.prepared.compiled.program
        fitted = None
        if not left:
            fitted = out.fit_tensors(file.prepared, anew=True, on_event=self._on_event)
        sources = {name: t.source.name for name, t in file.tensors.items() if t.source is not None}
        bridged = {name for name, source in sources.items() if source in program.fitted}
        locked = self.lock.gguf if self.lock is not None else None
        if bridged and not left and locked is None:
            self.found.unverified.append(
                f"{len(bridged)} bridged or healed tensors: there is no lock"
            )
        away = bridged if left or locked is None else set()
        made: dict[str, TensorDigest] = {}

        def seen(spec: TensorSpec, sha256: str) -> None:
            made[spec.name] = file.digest(spec.name, sha256, fitted)

        specs = [tensor.spec for name, tensor in file.tensors.items() if name not in away]
        payloads = file.payloads(out.payloads(program.outputs, fitted=fitted))
        of_tensors(specs, payloads, crew, seen, progress)
        known = {n: d for n, d in (locked.tensors if locked else found).items() if n not in away}
        self.found.compare_made(made, known, locked=locked is not None)


def _differing_facts(
    expected: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> list[Difference]:
    """What a file says otherwise than the plan gives."""
    ours, theirs = held(found), held(expected)
    return [
        Difference("config", key, f"{quoted(key)} is {_said(found, key)}, and by the plan "
                   f"{_said(expected, key)}", path)
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]  # fmt: skip


def _said(facts: Mapping[str, Any], key: str) -> str:
    return shown(facts[key]) if key in facts else "missing"
