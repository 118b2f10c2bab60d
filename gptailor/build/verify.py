"""Whether a compiled folder, or GGUF file, is what its plan and its lock say: `verify`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gptailor.build import output as out
from gptailor.build.findings import Findings, Verified, differing_plan, has_texts, work_of
from gptailor.build.lock import LOCK_FILE, PLAN_FILE, Difference, Lock, differing_tensors, read_lock
from gptailor.build.parents import CARD
from gptailor.build.record import config_digest
from gptailor.build.tokenizer import is_beside, tokenizer_model_name
from gptailor.checkpoint.families.lookup import FAMILY_SUFFIX
from gptailor.checkpoint.files import CheckpointError, is_gguf, open_regular, quoted
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
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_bytes, of_file, of_tensors
from gptailor.checkpoint.write.output_file import ByteProgress, Payload
from gptailor.checkpoint.write.tensors import Crew
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared

if TYPE_CHECKING:
    from gptailor.build.verify_gguf import GgufVerification
    from gptailor.evaluate.heal.heal import OnHealing
    from gptailor.plan.resolved import Gap

_LONGEST_VALUE = 60
"""Characters of a setting that are shown."""


def verify(
    folder: str | Path,
    *,
    models: ModelPaths | None = None,
    families: Sequence[str | Path] = (),
    tensors_only: bool = False,
    progress: ByteProgress = lambda _: None,
) -> Verified:
    """Whether a compiled folder, or GGUF file, is what its plan and lock say; see `Verified`.

    `models` gives other folders for the plan's names, `families` are family files; with
    `tensors_only` the folder is compared with its lock, and the models are not looked at. Raises
    CheckpointError if the folder is not there (C101), the file is no GGUF file (C109) or the lock
    none (C701, C702), PlanError if `models` has other names.
    """
    begun = verification_of(
        Path(folder), models=models, families=families, tensors_only=tensors_only
    )
    return begun.run(progress)


def verification_of(
    output: Path,
    *,
    models: ModelPaths | None = None,
    families: Sequence[str | Path] = (),
    tensors_only: bool = False,
) -> "Verification | GgufVerification":
    """The verification of a folder, or of a file that is called `….gguf`; see `verify`."""
    if is_gguf(output):
        from gptailor.build.verify_gguf import GgufVerification

        return GgufVerification(output, models=models, families=families, tensors_only=tensors_only)
    return Verification(output, models=models, families=families, tensors_only=tensors_only)


@final
class Verification:
    """A folder that is to be verified: it, its plan, its lock and the plan's models are opened.

    No weights are read before `run`; `work` are the bytes that it reads and makes. `bridging` and
    `healing` are told as `compile` tells them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: ModelPaths | None = None,
        families: Sequence[str | Path] = (),
        tensors_only: bool = False,
    ) -> None:
        if not folder.is_dir():
            raise CheckpointError("C101", "there is no such folder", folder)
        self.folder = folder
        self.bridging: Callable[[Gap], None] = lambda _: None
        self.healing: OnHealing | None = None
        self.tensors_only = tensors_only
        self.found = Findings()
        self.lock = read_lock(folder / LOCK_FILE) if (folder / LOCK_FILE).exists() else None
        self.plan = self._read_plan()
        if self.plan is not None and families:
            self.plan = self.plan.with_families(families)
        self.output = self._open_output()
        self.prepared: Prepared | None = None
        if self.lock is not None and self.plan is not None:
            self.found.differences += differing_plan(self.plan, self.lock)
        if tensors_only and self.lock is None:
            self.found.unverified.append(
                f"the tensors: there is no {LOCK_FILE} to compare them with"
            )
        if not tensors_only and self.plan is not None and self.output is not None:
            self.prepared = self.found.prepared(self.plan, models, folder / PLAN_FILE)

    @property
    def work(self) -> int:
        """The bytes that are to be read and made."""
        tensors = self.output.tensors.values() if self.output is not None else ()
        size = sum(tensor.spec.size for tensor in tensors)
        return work_of(size, self.prepared, self.lock)

    # ---------------------------------------------------------------------------- without weights

    def _read_plan(self) -> Plan | None:
        path = self.folder / PLAN_FILE
        if not path.exists():
            self.found.unverified.append(f"the plan: there is no {PLAN_FILE}")
            return None
        with open_regular(path) as file:
            return self.found.plan(file.readall(), path)

    def _open_output(self) -> Checkpoint | None:
        try:
            return open_checkpoint(self.folder)
        except CheckpointError as error:
            byte = "" if error.offset is None else f", byte {error.offset}"
            said = f"the folder is no model: {error.message} ({error.path.name}{byte})"
            self.found.differences.append(Difference("file", error.path.name, said, error.path))
            return None

    # ------------------------------------------------------------------------------- with weights

    def run(
        self, progress: ByteProgress = lambda _: None, *, threads: int | None = None
    ) -> Verified:
        """Compare tensors, the files beside them, the models' files, and what the plan makes."""
        if self.output is not None:
            self._compare(self.output, Crew(threads), progress)
        return self.found.of(self.folder)

    def _compare(self, output: Checkpoint, crew: Crew, progress: ByteProgress) -> None:
        told = crew.told(progress)
        infos = output.tensors.values()
        on_disk = {t.spec.name: ByteRange(t.file, t.offset, t.spec.size) for t in infos}
        specs = [tensor.spec for tensor in infos]
        found = _digests(specs, lambda spec: on_disk[spec.name], crew, told)
        if self.lock is not None:
            self.found.differences += differing_tensors(self.lock.tensors, found, "the lock")
            self.found.compared.append(f"{len(found)} tensors with the lock")
        if not self.tensors_only:
            self._compare_beside(output)
        if self.prepared is not None and self.found.has_locked_inputs(
            self.prepared, self.lock, crew, told
        ):
            self._recompile(self.prepared, output, found, crew, told)

    def _compare_beside(self, output: Checkpoint) -> None:
        """Compare the configuration, the tokenizer, and how the model generates."""
        self.found.differences += _differing_config(output, self.prepared, self.lock)
        if self.prepared is not None or self.lock is not None:
            self.found.compared.append(CONFIG)
        expected = self._expected_beside()
        if expected is None:
            self.found.unverified.append("the tokenizer's files: nothing says what they should be")
            return
        self.found.differences += _differing_beside(expected, output)
        self.found.compared.append(f"{len(expected)} files of the tokenizer")

    def _expected_beside(self) -> dict[str, FileDigest] | None:
        """Digests of the tokenizer's files and of how the model generates; None if unknown."""
        if self.prepared is not None:
            made = out.side_files(self.prepared, self.folder).items()
            return {
                name: of_bytes(content) if isinstance(content, bytes) else of_file(content)
                for name, content in made
                if name not in {CONFIG, PLAN_FILE, CARD} and not name.endswith(FAMILY_SUFFIX)
            }
        if self.lock is None or self.plan is None:
            return None
        if self.plan.chat_template is not None or self.plan.tokenizer == "union":
            return None  # what is made of them only the models can say
        found = self._locked(self.plan, tokenizer_model_name(self.plan), is_beside)
        found |= self._locked(self.plan, "base", PROCESSOR_FILES.__contains__)
        found |= self.lock.stripped
        return found or None  # without any the tokenizer may be that of a GGUF file

    def _locked(
        self, plan: Plan, name: str, wanted: Callable[[str], bool]
    ) -> dict[str, FileDigest]:
        """Digests of files that the lock has of a model, or of the one under its adapters."""
        while (under := plan.models[name].on) is not None:
            name = under
        models = self.lock.models if self.lock is not None else {}
        files = models[name].files if name in models else {}
        return {file: digest for file, digest in files.items() if wanted(file)}

    def _recompile(
        self,
        prepared: Prepared,
        output: Checkpoint,
        found: dict[str, TensorDigest],
        crew: Crew,
        progress: ByteProgress,
    ) -> None:
        """Compare with what the plan makes, in memory; not bridges whose text is gone."""
        program = prepared.compiled.program
        left: frozenset[str] = frozenset()
        if not has_texts(prepared):
            left = program.fitted
            gone = next(path for path in prepared.texts.values() if not path.is_file())
            said = f"{len(left)} bridged or healed tensors: their calibration text is gone ({gone})"
            self.found.unverified.append(said)
        fitted = None
        if not left:
            gap, healing = self.bridging, self.healing
            fitted = out.fit_tensors(prepared, anew=True, on_gap=gap, on_healing=healing)
        outputs = tuple(o for o in program.outputs if o.spec.name not in left)
        specs = [output.spec for output in outputs]
        made = _digests(specs, out.payloads(outputs, fitted=fitted), crew, progress)
        made = {s.name: out.tensor_digest(s, made[s.name].sha256, fitted) for s in specs}
        known = found if self.lock is None else self.lock.tensors
        known = {name: digest for name, digest in known.items() if name not in left}
        if self.lock is None:
            known |= out.sketched(output, found, program.fitted - left)
        self.found.compare_made(made, known, locked=self.lock is not None)


def _digests(
    specs: list[TensorSpec],
    payload_of: Callable[[TensorSpec], Payload],
    crew: Crew,
    progress: ByteProgress,
) -> dict[str, TensorDigest]:
    found: dict[str, TensorDigest] = {}

    def seen(spec: TensorSpec, sha256: str) -> None:
        found[spec.name] = out.tensor_digest(spec, sha256, None)

    of_tensors(specs, payload_of, crew, seen, progress)
    return found


# ------------------------------------------------------------------------------------ what differs


def _differing_config(
    output: Checkpoint, prepared: Prepared | None, lock: Lock | None
) -> Iterator[Difference]:
    """Settings that the plan gives otherwise; a configuration that is not the locked one."""
    path = output.folder / CONFIG
    expected = out.config(prepared) if prepared else output.config
    differing = False
    for key in sorted(expected.keys() | output.config.keys()):
        ours, theirs = (_shown(settings, key) for settings in (output.config, expected))
        if ours != theirs:
            differing = True
            said = f"{quoted(key)} of {CONFIG} is {_cut(ours)}, and by the plan {_cut(theirs)}"
            yield Difference("config", key, said, path)
    if not differing and lock is not None and config_digest(output.config) != lock.config:
        yield Difference("config", CONFIG, f"{CONFIG} is not the one that was locked", path)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], sort_keys=True) if key in settings else "missing"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _differing_beside(
    expected: Mapping[str, FileDigest], output: Checkpoint
) -> Iterator[Difference]:
    """Files that the folder lacks, that nobody gave it, and those with other bytes."""
    files = (*tokenizer_files(output), *processor_files(output), generation_config(output))
    paths = [path for path in files if path]
    found = {path.relative_to(output.folder).as_posix(): path for path in paths}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            said = "is missing"
        elif name not in expected:
            said = "is there, and the plan gives none of that name"
        elif of_file(found[name]) != expected[name]:
            said = "has other bytes than the plan gives"
        else:
            continue
        yield Difference("file", name, f"{quoted(name)} {said}", output.folder / name)
