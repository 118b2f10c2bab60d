"""The verification of a compiled folder, or GGUF file, by its plan and its lock: `verify`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, final

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX
from gptailor.checkpoint.files import CheckpointError, is_gguf, quoted
from gptailor.checkpoint.folder import Checkpoint
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_file, tensor_digests
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Crew, digests_of
from gptailor.evaluation.fits.inner_plans import with_inner_fits
from gptailor.lang.parse import read_bytes
from gptailor.output.compile import fit_tensors
from gptailor.output.destination import (
    CompiledFolder,
    CompiledOutput,
    Destination,
    gguf_beside,
)
from gptailor.output.differences import (
    Difference,
    Fact,
    FactKind,
    Facts,
    Measurement,
    alone,
    lock_differences,
    on_adapters,
    on_methods,
)
from gptailor.output.inputs import inputs, work
from gptailor.output.lock import Lock
from gptailor.output.lock_recording import measured_files, plan_digest
from gptailor.plan.events import OnEvent, counting_bytes, ignore_events
from gptailor.plan.faults import PLAN_FILE, Fault, PlanError, errors
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared, ready


@final
@dataclass(frozen=True)
class VerifyResult:
    """The result of a verification: the things compared, the differences, the things unverified.

    `result` is `verified` only without differences and without unverified things.
    """

    folder: Path
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]
    unverified: tuple[str, ...]

    @property
    def result(self) -> Literal["verified", "differs", "unverified"]:
        """`differs` with a difference; else `unverified` if something could not be compared."""
        if self.differences:
            return "differs"
        return "unverified" if self.unverified else "verified"


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
    CheckpointError if the folder is not there (C101), the file isn't a GGUF file (C109) or the lock
    isn't a lock (C701, C702), PlanError if `models` has other names.
    """
    begun = Verification(Path(folder), models=models, families=families, tensors_only=tensors_only)
    return begun.run(on_event)


@final
class Verification:
    """A compiled output to verify: the output, its plan, its lock and the models are opened.

    No weights are read before `run`; `work` are the bytes that it reads and makes. A folder is
    verified with the GGUF files beside it that its plan states. A GGUF file has its own lock, or
    its folder's, `held_to`. Raises CheckpointError: C101 for a missing folder, C109 for a file
    called `….gguf` of another format, C701 and C702 for an invalid lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        models: ModelPaths | None = None,
        families: Sequence[str | Path] = (),
        tensors_only: bool = False,
        held_to: Lock | None = None,
    ) -> None:
        self._on_event: OnEvent = ignore_events
        self.tensors_only = tensors_only
        self.compared: list[str] = []
        self.differences: list[Difference] = []
        self.unverified: list[str] = []
        self.output: CompiledOutput
        if is_gguf(path):
            from gptailor.output.gguf.file import CompiledGguf

            self.output = CompiledGguf(path, held_to)
        else:
            self.output = CompiledFolder(path)
        self.lock = self.output.lock
        self.plan = self._read_plan()
        if self.plan is not None:
            carried = sorted(path.glob(f"*{FAMILY_SUFFIX}"))  # where `compile` put them
            self.plan = self.plan.with_families(families or carried)
        if self.output.damage is not None:
            self.differences.append(self.output.damage)
        self.prepared: Prepared | None = None
        if not tensors_only and self.plan is not None and self.output.damage is None:
            self.prepared = self._prepared(self.plan, models)
        if self.lock is not None and self.plan is not None:
            plan = Measurement(facts=self._plan_facts(self.plan), path=self.output.plan_path)
            self._find(Measurement.of(self.lock), plan)
        if tensors_only and self.lock is None:
            self.unverified.append(f"the tensors: {self.output.no_lock}")
        self.files = [] if is_gguf(path) else [*self._stated_files(models, families)]

    def _stated_files(
        self, models: ModelPaths | None, families: Sequence[str | Path]
    ) -> Iterator["Verification"]:
        """Yield the verifications of the GGUF files beside the folder that its plan states."""
        for stated in () if self.plan is None else self.plan.gguf:
            path, kind = gguf_beside(self.output.path, stated.type), stated.type.upper()
            entry = None if self.lock is None else self.lock.gguf_of_type(kind)
            lock = self.lock and entry and self.lock.model_copy(update={"gguf": entry})
            if not path.exists():
                self.unverified.append(f"{path.name}: the plan has this file, but it is missing")
                continue
            try:
                file = Verification(
                    path, models=models, families=families, tensors_only=self.tensors_only,
                    held_to=lock,
                )  # fmt: skip
            except CheckpointError as error:
                self.differences.append(Difference("file", path.name, error.message, path))
                continue
            if file.plan and self.plan and plan_digest(file.plan) != plan_digest(self.plan):
                file.differences.append(
                    Difference("plan", path.name, "its plan is not the plan of the folder", path)
                )
            yield file

    @property
    def work(self) -> int:
        """The bytes that are to be read and made."""
        size = sum(spec.size for spec in self.output.tensors) + sum(f.work for f in self.files)
        if self.prepared is None:
            return size
        output_size = self.prepared.compiled.program.size
        return size + (output_size if self.lock is None else work(self.prepared))

    # ---------------------------------------------------------------------------- without weights

    def _read_plan(self) -> Plan | None:
        """Return the plan, if it has no faults."""
        raw = self.output.plan_text
        if raw is None:
            self.unverified.append(f"the plan: {self.output.no_plan}")
            return None
        path = self.output.plan_path
        plan, faults = read_bytes(raw, str(path), path.parent)
        if not errors(faults):
            return plan
        self._add_faults(errors(faults))
        return None

    def _prepared(self, plan: Plan, models: ModelPaths | None) -> Prepared | None:
        """Return the plan's program, if its models are there; faults but of files differ."""
        try:
            return ready(plan, models=models)
        except CheckpointError as error:
            self.unverified.append(f"the models: {error.message} ({error.path})")
        except PlanError as error:
            faults = errors(error.faults)
            if any(fault.code == "M105" for fault in faults):
                raise
            file_faults = [fault for fault in faults if fault.code.startswith("C")]
            if plan_faults := [fault for fault in faults if fault not in file_faults]:
                self._add_faults(plan_faults)
            for fault in file_faults:
                name = quoted(str(fault.at[1])) if fault.at[:1] == ("models",) else "files"
                self.unverified.append(f"model {name}: {fault.message}")
        return None

    def _plan_facts(self, plan: Plan) -> dict[FactKind, Facts]:
        dtype, digest = f"{PLAN_FILE} has the dtype {plan.dtype}, but the lock", plan_digest(plan)
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
        """Compare tensors, the files in their folder, the models' files, and the plan's tensors."""
        self._on_event = on_event
        if self.output.damage is None:
            crew = Crew(threads)
            self._compare(crew, crew.exclusive(counting_bytes(on_event)))
        for file in self.files:
            result, name = file.run(on_event, threads=threads), file.output.path.name
            self.compared.append(f"{name}: {', '.join(result.compared)}")
            self.unverified += [f"{name}: {reason}" for reason in result.unverified]
            self.differences += [
                replace(each, message=f"{name}: {each.message}") for each in result.differences
            ]
        return VerifyResult(
            self.output.path, tuple(self.compared), tuple(self.differences), tuple(self.unverified)
        )

    def _find(self, expected: Measurement, actual: Measurement) -> bool:
        """Record the differences between two measurements; return whether there are any."""
        differing = list(lock_differences(expected, actual))
        self.differences += differing
        return bool(differing)

    def _add_faults(self, faults: list[Fault]) -> None:
        """Record a plan that can't be compiled."""
        first = faults[0]
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        message = f"{PLAN_FILE} can't be compiled: {first.message} [{first.code}]{more}"
        self.differences.append(Difference("plan", PLAN_FILE, message, self.output.plan_path))

    def _compare(self, crew: Crew, progress: ByteProgress) -> None:
        present = self.output.tensors
        tensors = tensor_digests(present, digests_of(present, crew, progress))
        if self.lock is not None:
            if (locked := self.output.locked) is not None:
                self._find(locked, Measurement(facts=self.output.settings, tensors=tensors))
                self.compared.append(f"{len(tensors)} tensors with the lock")
            else:
                self.unverified.append("the tensors: the lock is of a folder")
        if self.tensors_only:
            return
        facts, words = self.output.by_lock(self.plan)
        destination = None
        if self.prepared is not None:
            if (destination := self._destination(self.prepared)) is None:
                return
            planned, words = destination.expected()
            facts = {**facts, **planned}
        self.compared += words
        actual = self.output.settings
        if "beside" in actual and "beside" not in facts:
            self.unverified.append("the tokenizer's files: their expected contents are unknown")
        self._find(Measurement(facts=facts), Measurement(facts=actual))
        if destination and self._has_locked_inputs(destination.prepared, crew, progress):
            self._remake(destination, tensors, crew, progress)

    def _destination(self, prepared: Prepared) -> Destination | None:
        """Return the output that the plan makes, if it makes one here."""
        try:
            return self.output.destination(prepared)
        except (CheckpointError, CalibrationError, ValueError) as error:
            message = str(error) if isinstance(error, ValueError) else error.message
            self.unverified.append(f"the plan's output: {message}")
            return None

    def _has_locked_inputs(self, prepared: Prepared, crew: Crew, progress: ByteProgress) -> bool:
        """Return whether the plan's inputs are the locked ones, if there is a lock."""
        if self.lock is None:
            return True
        digests: dict[Path, FileDigest] = {}

        def take(path: Path) -> None:
            digests[path] = of_file(path, progress)

        crew.do([partial(take, path) for path in sorted(set(inputs(prepared).values()))])
        facts = measured_files(prepared, lambda path: Fact.of_file(digests[path], path))
        if self._find(Measurement.of(self.lock), Measurement(facts=facts)):
            reason = "its models differ from the lock"
            self.unverified.append(f"the plan's output: {reason}")
            return False
        count = sum(len(model.files) for model in self.lock.models.values())
        self.compared.append(f"{count} files of the models with the lock")
        return True

    def _remake(
        self,
        planned: Destination,
        tensors: Mapping[str, TensorDigest],
        crew: Crew,
        progress: ByteProgress,
    ) -> None:
        """Compare with the plan's tensors, made in memory, except fits that can't be compared."""
        prepared = with_inner_fits(planned.prepared, anew=True, on_event=self._on_event)
        planned.prepared = prepared
        names = skipped = planned.decided
        locked, checkpoint = self.output.locked, self.output.checkpoint
        if missing := next((path for path in prepared.texts.values() if not path.is_file()), None):
            reason = f"their calibration text is missing ({missing})"
        elif names and locked is None and checkpoint is None:
            reason = "there is no lock"
        else:
            reason, skipped = "", frozenset()
        fitted = None
        if reason:
            words = f"{len(skipped)} {planned.decided_words} tensors"
            self.unverified.append(f"{words}: {reason}")
        else:
            fitted = fit_tensors(prepared, anew=True, on_event=self._on_event)
        made, sketches = planned.remade(fitted, skipped)
        remade = tensor_digests(made, digests_of(made, crew, progress), sketches)
        expected = tensors if locked is None else locked.tensors or {}
        expected = {name: digest for name, digest in expected.items() if name not in skipped}
        self.compared.append(f"{len(remade)} tensors with the plan's output")
        if locked is None:
            if checkpoint is not None:
                expected |= _sketched(checkpoint, tensors, names - skipped)
            remade_tensors = Measurement(tensors=remade, source="the plan")
            self._find(remade_tensors, Measurement(tensors=expected))
        else:
            remade_tensors = Measurement(tensors=remade, tensor="the plan's tensor")
            self._find(Measurement(tensors=expected), remade_tensors)


def _sketched(
    output: Checkpoint, digests: Mapping[str, TensorDigest], names: Iterable[str]
) -> dict[str, TensorDigest]:
    """Return the digests of some of a folder's tensors with sketches, which compare fits."""
    if not (present := [name for name in names if name in digests]):
        return {}
    from gptailor.program.load import load_tensor  # imports torch
    from gptailor.program.sketch import sketch  # imports torch

    numbers = {name: sketch(load_tensor(output.tensors[name])) for name in present}
    return {name: digests[name].model_copy(update={"sketch": numbers[name]}) for name in present}
