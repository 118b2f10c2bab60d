"""The verification of a compiled folder, or GGUF file, by its plan and its lock: `verify`."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gptailor.checkpoint.families.lookup import FAMILY_SUFFIX
from gptailor.checkpoint.files import CheckpointError, is_gguf, open_regular, quoted
from gptailor.checkpoint.folder import (
    CONFIG,
    PROCESSOR_FILES,
    generation_config,
    open_checkpoint,
    processor_files,
    tokenizer_files,
)
from gptailor.checkpoint.tensor import ByteRange
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_bytes, of_file
from gptailor.checkpoint.write.kept import json_digest
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Crew
from gptailor.evaluation.fits.inner_plans import with_inner_fits
from gptailor.lang.parse import read_bytes
from gptailor.output import output as out
from gptailor.output.differences import (
    Difference,
    Fact,
    FactKind,
    Facts,
    Measurement,
    alone,
    on_adapters,
    on_methods,
)
from gptailor.output.inputs import inputs, work
from gptailor.output.lock import LOCK_FILE, Lock, read_lock
from gptailor.output.lock_recording import measured_files, plan_digest
from gptailor.output.parents import CARD
from gptailor.output.tokenizer import is_beside, tokenizer_model_name
from gptailor.output.verification import CompiledOutput, DigestedTensors, Findings, VerifyResult
from gptailor.plan.bounds import MOST_BYTES
from gptailor.plan.events import OnEvent, counting_bytes, ignore_events
from gptailor.plan.faults import PLAN_FILE, PlanError, errors, nearest_path
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared, ready

if TYPE_CHECKING:
    from gptailor.evaluation.fits.repair import Fitted

_LONGEST_VALUE = 60
"""Characters of a setting that are shown."""


def verify(
    folder: str | Path,
    *,
    models: ModelPaths | None = None,
    families: Sequence[str | Path] = (),
    tensors_only: bool = False,
    on_event: OnEvent = ignore_events,
) -> VerifyResult:
    """Verify a compiled folder, or GGUF file, by its plan and its lock.

    `models` gives other folders for the plan's names, `families` are family files; with
    `tensors_only` the folder is compared with its lock, and the models are not looked at. Raises
    CheckpointError if the folder is not there (C101), the file is no GGUF file (C109) or the lock
    none (C701, C702), PlanError if `models` has other names.
    """
    begun = Verification(Path(folder), models=models, families=families, tensors_only=tensors_only)
    return begun.run(on_event)


def compiled_output(path: Path) -> CompiledOutput:
    """Return the reader of a folder, or of a file that is called `….gguf`.

    Raises CheckpointError: C101 for a missing folder, C109 for a file that is no GGUF file.
    """
    if is_gguf(path):
        from gptailor.output.gguf.verification import CompiledGguf

        return CompiledGguf(path)
    return CompiledFolder(path)


@final
class Verification:
    """A compiled output to verify: the output, its plan, its lock and the models are opened.

    No weights are read before `run`; `work` are the bytes that it reads and makes. Raises
    CheckpointError as `compiled_output` does, and C701 and C702 for an invalid lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        models: ModelPaths | None = None,
        families: Sequence[str | Path] = (),
        tensors_only: bool = False,
    ) -> None:
        self._on_event: OnEvent = ignore_events
        self.tensors_only = tensors_only
        self.found = Findings()
        self.output = compiled_output(path)
        self.lock = self.output.lock
        self.plan = self._read_plan()
        if self.plan is not None:
            carried = sorted(path.glob(f"*{FAMILY_SUFFIX}"))  # where `compile` put them
            self.plan = self.plan.with_families(families or carried)
        if self.output.damage is not None:
            self.found.differences.append(self.output.damage)
        self.prepared: Prepared | None = None
        if not tensors_only and self.plan is not None and self.output.damage is None:
            self.prepared = self._prepared(self.plan, models)
        if self.lock is not None and self.plan is not None:
            plan = Measurement(facts=self._plan_facts(self.plan), path=self.output.plan_path)
            self.found.compare(Measurement.of(self.lock), plan)
        if tensors_only and self.lock is None:
            self.found.unverified.append(f"the tensors: {self.output.no_lock}")

    @property
    def work(self) -> int:
        """The bytes that are to be read and made."""
        size = sum(spec.size for spec in self.output.tensors.specs)
        if self.prepared is None:
            return size
        output_size = self.prepared.compiled.program.size
        return size + (output_size if self.lock is None else work(self.prepared))

    # ---------------------------------------------------------------------------- without weights

    def _read_plan(self) -> Plan | None:
        """Return the plan, if it has no faults."""
        raw = self.output.plan_text
        if raw is None:
            self.found.unverified.append(f"the plan: {self.output.no_plan}")
            return None
        path = self.output.plan_path
        plan, faults = read_bytes(raw, str(path), path.parent)
        if not errors(faults):
            return plan
        self.found.add_faults(errors(faults), path)
        return None

    def _prepared(self, plan: Plan, models: ModelPaths | None) -> Prepared | None:
        """Return the plan's program, if its models are there; faults but of files differ."""
        unverified = self.found.unverified
        try:
            return ready(plan, models=models)
        except CheckpointError as error:
            unverified.append(f"the models: {error.message} ({error.path})")
        except PlanError as error:
            faults = errors(error.faults)
            if any(fault.code == "M105" for fault in faults):
                raise
            file_faults = [fault for fault in faults if fault.code.startswith("C")]
            if plan_faults := [fault for fault in faults if fault not in file_faults]:
                self.found.add_faults(plan_faults, self.output.plan_path)
            for fault in file_faults:
                name = quoted(str(fault.at[1])) if fault.at[:1] == ("models",) else "files"
                unverified.append(f"model {name}: {fault.message}")
        return None

    def _plan_facts(self, plan: Plan) -> dict[FactKind, Facts]:
        dtype, digest = f"{PLAN_FILE} has the dtype {plan.dtype}, and the lock", plan_digest(plan)
        facts: dict[FactKind, Facts] = {
            "plan": {("", "plan"): Fact((digest,), f"{PLAN_FILE} is not the plan", name=PLAN_FILE)},
            "dtype": alone("dtype", plan.dtype, dtype),
            "under": on_adapters({name: model.on for name, model in plan.models.items()}),
        }
        if self.prepared is not None:
            facts["methods"] = on_methods(self.prepared.packages)
        return facts

    # ------------------------------------------------------------------------------- with weights

    def run(self, on_event: OnEvent = ignore_events, *, threads: int | None = None) -> VerifyResult:
        """Compare tensors, the files beside them, the models' files, and the plan's tensors."""
        self._on_event = on_event
        if self.output.damage is None:
            crew = Crew(threads)
            self._compare(crew, crew.exclusive(counting_bytes(on_event)))
        return self.found.of(self.output.path)

    def _compare(self, crew: Crew, progress: ByteProgress) -> None:
        tensors = self.output.tensors.digests(crew, progress)
        if self.lock is not None:
            if (locked := self.output.locked) is not None:
                actual = Measurement(facts=self.output.settings, tensors=tensors)
                self.found.compare(locked, actual)
                self.found.compared.append(f"{len(tensors)} tensors with the lock")
            else:
                self.found.unverified.append("the tensors: the lock was made of a folder")
        if self.tensors_only:
            return
        planned = self.output.planned(self.prepared, self.plan, self.found)
        if planned is None:
            return
        facts = {**self.output.settings, **self.output.files()}
        self.found.compare(Measurement(facts=planned), Measurement(facts=facts))
        if self.prepared is not None and self._has_locked_inputs(self.prepared, crew, progress):
            self._remake(self.prepared, tensors, crew, progress)

    def _has_locked_inputs(self, prepared: Prepared, crew: Crew, progress: ByteProgress) -> bool:
        """Return whether the plan's inputs are the locked ones, if there is a lock."""
        if self.lock is None:
            return True
        digests: dict[Path, FileDigest] = {}

        def take(path: Path) -> None:
            digests[path] = of_file(path, progress)

        crew.do([partial(take, path) for path in sorted(set(inputs(prepared).values()))])
        facts = measured_files(prepared, lambda path: Fact.of_file(digests[path], path))
        if self.found.compare(Measurement.of(self.lock), Measurement(facts=facts)):
            reason = "its models are not those that were locked"
            self.found.unverified.append(f"what the plan makes: {reason}")
            return False
        count = sum(len(model.files) for model in self.lock.models.values())
        self.found.compared.append(f"{count} files of the models with the lock")
        return True

    def _remake(
        self,
        prepared: Prepared,
        tensors: Mapping[str, TensorDigest],
        crew: Crew,
        progress: ByteProgress,
    ) -> None:
        """Compare with the plan's tensors, made in memory, except fits that can't be compared."""
        prepared = with_inner_fits(prepared, anew=True, on_event=self._on_event)
        names = skipped = self.output.fitted_names(prepared)
        locked = self.output.locked
        if missing := next((path for path in prepared.texts.values() if not path.is_file()), None):
            reason = f"their calibration text is gone ({missing})"
        elif names and locked is None and self.output.checkpoint is None:
            reason = "there is no lock"
        else:
            reason, skipped = "", frozenset()
        fitted = None
        if reason:
            self.found.unverified.append(f"{len(skipped)} {self.output.decided} tensors: {reason}")
        else:
            fitted = out.fit_tensors(prepared, anew=True, on_event=self._on_event)
        remade = self.output.remade(prepared, fitted, skipped).digests(crew, progress)
        expected = tensors if locked is None else locked.tensors or {}
        expected = {name: digest for name, digest in expected.items() if name not in skipped}
        self.found.compared.append(f"{len(remade)} tensors with the plan's output")
        if locked is None:
            if self.output.checkpoint is not None:
                expected |= out.sketched(self.output.checkpoint, tensors, names - skipped)
            remade_tensors = Measurement(tensors=remade, source="the plan")
            self.found.compare(remade_tensors, Measurement(tensors=expected))
        else:
            remade_tensors = Measurement(tensors=remade, tensor="what the plan makes of tensor")
            self.found.compare(Measurement(tensors=expected), remade_tensors)


@final
class CompiledFolder(CompiledOutput):
    """The reader of a compiled folder."""

    no_plan = f"there is no {PLAN_FILE}"
    no_lock = f"there is no {LOCK_FILE} to compare them with"

    def __init__(self, folder: Path) -> None:
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
            self.settings = {"config": _values(config, path), "config digest": digest}
        except CheckpointError as error:
            byte = "" if error.offset is None else f", byte {error.offset}"
            message = f"the folder is no model: {error.message} ({error.path.name}{byte})"
            self.damage = Difference("file", error.path.name, message, error.path)
        infos = {} if self.checkpoint is None else self.checkpoint.tensors
        places = {n: ByteRange(t.file, t.offset, t.spec.size) for n, t in infos.items()}
        specs = [tensor.spec for tensor in infos.values()]
        digest_of = partial(out.tensor_digest, fitted=None)
        self.tensors = DigestedTensors(specs, lambda spec: places[spec.name], digest_of)

    def files(self) -> Mapping[FactKind, Facts]:
        """Return the tokenizer's files, the processor's, and how the model generates."""
        output = self.checkpoint
        assert output is not None, "the folder is no model"
        files = (*tokenizer_files(output), *processor_files(output), generation_config(output))
        by_name = {path.relative_to(output.folder).as_posix(): path for path in files if path}
        return {"beside": self._beside({name: of_file(path) for name, path in by_name.items()})}

    def _beside(self, files: Mapping[str, FileDigest]) -> Facts:
        return {
            ("", name): Fact((digest.sha256,), path=self.path / name)
            for name, digest in files.items()
        }

    def planned(
        self, prepared: Prepared | None, plan: Plan | None, findings: Findings
    ) -> Mapping[FactKind, Facts]:
        """Return the expected configuration, tokenizer, and how the model generates."""
        lock = self.lock
        if prepared is not None or lock is not None:
            findings.compared.append(CONFIG)
        locked = None if lock is None else lock.config
        facts: dict[FactKind, Facts] = {"config digest": alone(CONFIG, locked)}
        if prepared is None:
            beside = _locked_files(plan, lock)
        else:
            facts["config"] = _values(out.config(prepared), self.path / CONFIG)
            beside = {
                name: of_bytes(content) if isinstance(content, bytes) else of_file(content)
                for name, content in out.side_files(prepared, self.path).items()
                if name not in {CONFIG, PLAN_FILE, CARD} and not name.endswith(FAMILY_SUFFIX)
            }
        if beside is None:
            findings.unverified.append("the tokenizer's files: nothing says what they should be")
        else:
            findings.compared.append(f"{len(beside)} files of the tokenizer")
            facts["beside"] = self._beside(beside)
        return facts

    def fitted_names(self, prepared: Prepared) -> frozenset[str]:
        """Return the names of the tensors that bridges and healing change."""
        return prepared.compiled.program.fitted.union(prepared.refitted)

    def remade(
        self, prepared: Prepared, fitted: "Fitted | None", skipped: Collection[str]
    ) -> DigestedTensors:
        """Return the tensors that the plan makes, except those `skipped`."""
        program = prepared.compiled.program.outputs
        outputs = tuple(output for output in program if output.spec.name not in skipped)
        specs = [output.spec for output in outputs]
        digest = partial(out.tensor_digest, fitted=fitted, refitted=prepared.refitted)
        return DigestedTensors(specs, out.payloads(outputs, fitted=fitted), digest)


def _values(config: Mapping[str, Any], path: Path) -> Facts:
    """Return the settings of a configuration, long ones cut where they are shown."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in config.items()}
    most = _LONGEST_VALUE
    return {
        ("", key): Fact((text,), text if len(text) <= most else f"{text[:most]}…", path)
        for key, text in texts.items()
    }


def _locked_files(plan: Plan | None, lock: Lock | None) -> dict[str, FileDigest] | None:
    """Return digests of the files beside the weights by a lock alone; None if it has none.

    A lock has no digest of a file that the plan makes, and none of the tokenizer of a GGUF file or
    of an inner plan.
    """
    if lock is None or plan is None:
        return None
    made = plan.chat_template is not None or plan.vocabulary is not None
    if made or plan.tokenizer == "union":
        return None

    def files_of(name: str, is_chosen: Callable[[str], bool]) -> dict[str, FileDigest]:
        while (under := plan.models[name].on) is not None:
            name = under
        files = lock.models[name].files if name in lock.models else {}
        return {file: digest for file, digest in files.items() if is_chosen(file)}

    tokenizer = files_of(tokenizer_model_name(plan), is_beside)
    if not tokenizer:
        return None
    return tokenizer | files_of("base", PROCESSOR_FILES.__contains__) | lock.stripped
