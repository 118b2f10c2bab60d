"""The findings of a verification, and the readers of its outputs: a folder, or a GGUF file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from gptailor.checkpoint.folder import Checkpoint
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest, of_tensors
from gptailor.checkpoint.write.output_file import ByteProgress, Payload
from gptailor.checkpoint.write.tensors import Crew
from gptailor.output.differences import Difference, FactKind, Facts, Measurement, lock_differences
from gptailor.output.lock import Lock
from gptailor.plan.faults import PLAN_FILE, Fault
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared

if TYPE_CHECKING:
    from gptailor.evaluation.fits.repair import Fitted


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


@final
@dataclass
class Findings:
    """The findings of a running verification."""

    compared: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    def of(self, folder: Path) -> VerifyResult:
        """Return the findings of a verification that has ended."""
        return VerifyResult(
            folder, tuple(self.compared), tuple(self.differences), tuple(self.unverified)
        )

    def compare(self, expected: Measurement, actual: Measurement) -> bool:
        """Record the differences between two measurements; return whether there are any."""
        differing = list(lock_differences(expected, actual))
        self.differences += differing
        return bool(differing)

    def add_faults(self, faults: list[Fault], path: Path) -> None:
        """Record a plan that can't be compiled; `path` is its file."""
        first = faults[0]
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        message = f"{PLAN_FILE} can't be compiled: {first.message} [{first.code}]{more}"
        self.differences.append(Difference("plan", PLAN_FILE, message, path))


@final
@dataclass(frozen=True, slots=True)
class DigestedTensors:
    """Tensors that are read or made, and the form of their digests."""

    specs: Sequence[TensorSpec]
    payload_of: Callable[[TensorSpec], Payload]
    digest: Callable[[TensorSpec, str], TensorDigest]

    def digests(self, crew: Crew, progress: ByteProgress) -> dict[str, TensorDigest]:
        """Return the digest of each tensor; nothing is kept of its bytes."""
        digests: dict[str, TensorDigest] = {}

        def add(spec: TensorSpec, sha256: str) -> None:
            digests[spec.name] = self.digest(spec, sha256)

        of_tensors(self.specs, self.payload_of, crew, add, progress)
        return digests


class CompiledOutput(ABC):
    """A reader of a compiled output: its plan, its lock, and measurements of its content.

    `locked` is the lock's part on such an output, if there is one. No weights are read before the
    `tensors` are digested; `damage` hides all of them, and the settings. `no_plan` and `no_lock`
    are words for people. Without a lock, fits are compared with those of the `checkpoint`.
    """

    no_plan: ClassVar[str]
    no_lock: ClassVar[str]

    path: Path
    plan_path: Path
    plan_text: bytes | None
    lock: Lock | None
    locked: Measurement | None
    tensors: DigestedTensors
    settings: Mapping[FactKind, Facts]
    decided = "fitted or healed"
    """Words for the tensors of `fitted_names`."""
    checkpoint: Checkpoint | None = None
    damage: Difference | None = None

    def files(self) -> Mapping[FactKind, Facts]:
        """Return the files beside the weights."""
        return {}

    @abstractmethod
    def planned(
        self, prepared: Prepared | None, plan: Plan | None, findings: Findings
    ) -> Mapping[FactKind, Facts] | None:
        """Return the expected settings and files; None if the plan makes no such output.

        Words on things compared, and on things unverified, go to the findings.
        """

    @abstractmethod
    def fitted_names(self, prepared: Prepared) -> frozenset[str]:
        """Return the names of the tensors that bridges and healing change."""

    @abstractmethod
    def remade(
        self, prepared: Prepared, fitted: "Fitted | None", skipped: Collection[str]
    ) -> DigestedTensors:
        """Return the tensors that the plan makes, except those `skipped`."""
