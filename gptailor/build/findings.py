"""What a verification finds, and what verifying a folder and a GGUF file have in common."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, final

from gptailor.build import output as out
from gptailor.build.lock import PLAN_FILE, Difference, Lock, differing_tensors
from gptailor.build.record import (
    differing_families,
    differing_inputs,
    differing_template,
    differing_texts,
    plan_digest,
)
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_file
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Crew
from gptailor.lang.parse import read_bytes
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared, ready


@final
@dataclass(frozen=True)
class Verified:
    """What became of a verification: what was compared, what differs, what could not be compared.

    `result` is `verified` only if nothing differs and nothing is left open.
    """

    folder: Path
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]
    unverified: tuple[str, ...]

    @property
    def result(self) -> Literal["verified", "differs", "unverified"]:
        """`differs` if anything does; else `unverified` if something could not be compared."""
        if self.differences:
            return "differs"
        return "unverified" if self.unverified else "verified"


@final
@dataclass
class Findings:
    """What has been found so far."""

    compared: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    def of(self, folder: Path) -> Verified:
        """The same, once it is all."""
        return Verified(
            folder, tuple(self.compared), tuple(self.differences), tuple(self.unverified)
        )

    def prepared(self, plan: Plan, models: ModelPaths | None, path: Path) -> Prepared | None:
        """The plan's program, if its models are there; faults that aren't of files differ.

        `path` is where the plan is.
        """
        try:
            return ready(plan, models=models)
        except CheckpointError as error:
            self.unverified.append(f"the models: {error.message} ({error.path})")
        except PlanError as error:
            faults = errors(error.faults)
            if any(fault.code == "M105" for fault in faults):
                raise
            away = [fault for fault in faults if fault.code.startswith("C")]
            if other := [fault for fault in faults if fault not in away]:
                self.differences.append(_faulty(other, path))
            for fault in away:
                name = quoted(str(fault.at[1])) if fault.at[:1] == ("models",) else "files"
                self.unverified.append(f"model {name}: {fault.message}")
        return None

    def plan(self, raw: bytes, path: Path) -> Plan | None:
        """The plan of the bytes at a path, if it has no faults."""
        plan, faults = read_bytes(raw, str(path), path.parent)
        if not errors(faults):
            return plan
        self.differences.append(_faulty(errors(faults), path))
        return None

    def compare_made(
        self, made: Mapping[str, TensorDigest], known: Mapping[str, TensorDigest], *, locked: bool
    ) -> None:
        """Compare the tensors that the plan makes with those of the lock, or of the output."""
        if locked:
            what = "what the plan makes of tensor"
            self.differences += differing_tensors(known, made, "the lock", what)
        else:
            self.differences += differing_tensors(made, known, "the plan")
        self.compared.append(f"{len(made)} tensors with what the plan makes")

    def has_locked_inputs(
        self, prepared: Prepared, lock: Lock | None, crew: Crew, progress: ByteProgress
    ) -> bool:
        """Whether the plan is compiled of what was locked, if there is a lock."""
        if lock is None:
            return True
        read = out.inputs(prepared)
        digests: dict[Path, FileDigest] = {}

        def take(path: Path) -> None:
            digests[path] = of_file(path, progress)

        paths = sorted({path for its in read.values() for path in its.values()})
        crew.do([partial(take, path) for path in paths])
        differing = list(differing_inputs(read, lock, lambda path, _: digests[path]))
        differing += differing_families(prepared, lock)
        differing += differing_texts(prepared, lock) if has_texts(prepared) else []
        differing += differing_template(prepared, lock)
        self.differences += differing
        if differing:
            self.unverified.append("what the plan makes: its models are not those that were locked")
            return False
        count = sum(len(model.files) for model in lock.models.values())
        self.compared.append(f"{count} files of the models with the lock")
        return True


def work_of(size: int, prepared: Prepared | None, lock: Lock | None) -> int:
    """The bytes that are read and made to verify an output of so many."""
    if prepared is None:
        return size
    return size + (prepared.compiled.program.size if lock is None else out.work(prepared))


def has_texts(prepared: Prepared) -> bool:
    """Whether the calibration texts of a plan's bridges are there."""
    return all(path.is_file() for path in prepared.texts.values())


def differing_plan(plan: Plan, lock: Lock) -> Iterator[Difference]:
    """A plan that is not the one that was locked, or has another dtype."""
    path = lock.path.with_name(PLAN_FILE)
    if plan_digest(plan) != lock.plan:
        yield Difference("plan", PLAN_FILE, f"{PLAN_FILE} is not the plan that was locked", path)
    elif plan.dtype != lock.dtype:
        said = f"{PLAN_FILE} has the dtype {plan.dtype}, and the lock {lock.dtype}"
        yield Difference("dtype", "dtype", said, path)


def _faulty(faults: list[Fault], path: Path) -> Difference:
    """A plan that can't be compiled."""
    first = faults[0]
    more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    said = f"{PLAN_FILE} can't be compiled: {first.message} [{first.code}]{more}"
    return Difference("plan", PLAN_FILE, said, path)
