"""Whether a compiled folder is what its plan and its lock say: `verify`."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gptailor.build.lock import LOCK_FILE, PLAN_FILE, Difference, Lock, differing_tensors, read_lock
from gptailor.build.output import (
    CARD,
    config,
    fit_bridges,
    inputs,
    is_beside,
    payloads,
    side_files,
    sketched,
    tensor_digest,
    tokenizer_model_name,
)
from gptailor.build.record import config_digest, differing_inputs, differing_texts, plan_digest
from gptailor.checkpoint.files import CheckpointError, open_regular, quoted
from gptailor.checkpoint.folder import (
    CONFIG,
    Checkpoint,
    generation_config,
    open_checkpoint,
    tokenizer_files,
)
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_bytes, of_file, of_tensors
from gptailor.checkpoint.write.output_file import ByteProgress, Payload
from gptailor.checkpoint.write.threads import Crew
from gptailor.lang.parse import read_bytes
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths, Prepared, ready

LONGEST_VALUE = 60
"""Characters of a setting that are shown."""


def differing_config(
    output: Checkpoint, prepared: Prepared | None, lock: Lock | None
) -> Iterator[Difference]:
    """Settings that the plan gives otherwise; a configuration that is not the locked one."""
    path = output.folder / CONFIG
    differing = list(_settings(config(prepared), output.config, path)) if prepared else []
    yield from differing
    locked = lock is None or config_digest(output.config) == lock.config
    if not (differing or locked):
        yield Difference("config", CONFIG, f"{CONFIG} is not the one that was locked", path)


def _settings(
    expected: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> Iterator[Difference]:
    for key in sorted(expected.keys() | found.keys()):
        ours, theirs = (_shown(settings, key) for settings in (found, expected))
        if ours != theirs:
            said = f"{quoted(key)} of {CONFIG} is {_cut(ours)}, and by the plan {_cut(theirs)}"
            yield Difference("config", key, said, path)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], sort_keys=True) if key in settings else "missing"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def expected_beside(
    folder: Path, plan: Plan | None, prepared: Prepared | None, lock: Lock | None
) -> dict[str, FileDigest] | None:
    """Digests of the tokenizer's files and of how the model generates; None where nobody knows."""
    if prepared is not None:
        made = side_files(prepared, folder).items()
        return {
            name: of_bytes(content) if isinstance(content, bytes) else of_file(content)
            for name, content in made
            if name not in {CONFIG, PLAN_FILE, CARD}
        }
    if lock is None or plan is None:
        return None
    lowest = tokenizer_model_name(plan)
    while (under := plan.models[lowest].on) is not None:
        lowest = under
    files = lock.models[lowest].files if lowest in lock.models else {}
    found = {name: digest for name, digest in files.items() if is_beside(name)}
    return found or None  # without any the tokenizer may be that of a GGUF file


def differing_beside(
    expected: Mapping[str, FileDigest], output: Checkpoint
) -> Iterator[Difference]:
    """Files that the folder lacks, that nobody gave it, and those with other bytes."""
    paths = [path for path in (*tokenizer_files(output), generation_config(output)) if path]
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


_Tensors = dict[str, TensorDigest]


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


@dataclass
class Verification:
    """A folder that is to be verified: all that is known of it without reading its weights."""

    folder: Path
    tensors_only: bool = False
    lock: Lock | None = None
    plan: Plan | None = None
    output: Checkpoint | None = None
    prepared: Prepared | None = None
    compared: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    @property
    def work(self) -> int:
        """The bytes that are to be read and made."""
        tensors = self.output.tensors.values() if self.output is not None else ()
        size = sum(tensor.spec.size for tensor in tensors)
        if self.prepared is not None:
            size += self.prepared.compiled.program.size
            if self.lock is not None:
                read = inputs(self.prepared).values()
                size += sum(path.stat().st_size for its in read for path in its.values())
        return size


def verify(
    folder: str | Path,
    *,
    models: ModelPaths | None = None,
    tensors_only: bool = False,
    progress: ByteProgress = lambda _: None,
) -> Verified:
    """Whether a compiled folder is what its plan and its lock say; see `Verified`.

    `models` gives other folders for the plan's names; with `tensors_only` the folder is compared
    with its lock, and the models are not looked at. Raises CheckpointError if the folder is not
    there (C101) or its lock is none (C701, C702), PlanError if `models` has other names.
    """
    return verified(begin(Path(folder), models=models, tensors_only=tensors_only), progress)


# ------------------------------------------------------------------------------- without weights


def begin(
    folder: Path, *, models: ModelPaths | None = None, tensors_only: bool = False
) -> Verification:
    """Open the folder, its plan and its lock, and the plan's models unless `tensors_only`."""
    if not folder.is_dir():
        raise CheckpointError("C101", "there is no such folder", folder)
    it = Verification(folder, tensors_only)
    it.lock = read_lock(folder / LOCK_FILE) if (folder / LOCK_FILE).exists() else None
    it.plan = _plan(it)
    try:
        it.output = open_checkpoint(folder)
    except CheckpointError as error:
        it.differences.append(_broken(error))
    if it.lock is not None and it.plan is not None:
        it.differences += _of_plan(it.plan, it.lock)
    if tensors_only:
        if it.lock is None:
            it.unverified.append(f"the tensors: there is no {LOCK_FILE} to compare them with")
    elif it.plan is not None and it.output is not None:
        _prepare(it, it.plan, models)
    return it


def _plan(it: Verification) -> Plan | None:
    path = it.folder / PLAN_FILE
    if not path.exists():
        it.unverified.append(f"the plan: there is no {PLAN_FILE}")
        return None
    with open_regular(path) as file:
        raw = file.readall()
    plan, faults = read_bytes(raw, str(path), it.folder)
    if plan is None or errors(faults):
        it.differences.append(_faulty(errors(faults), path))
        return None
    return plan


def _of_plan(plan: Plan, lock: Lock) -> Iterator[Difference]:
    path = lock.path.with_name(PLAN_FILE)
    if plan_digest(plan) != lock.plan:
        yield Difference("plan", PLAN_FILE, f"{PLAN_FILE} is not the plan that was locked", path)
    elif plan.dtype != lock.dtype:
        said = f"{PLAN_FILE} has the dtype {plan.dtype}, and the lock {lock.dtype}"
        yield Difference("dtype", "dtype", said, path)


def _prepare(it: Verification, plan: Plan, models: ModelPaths | None) -> None:
    """The plan's program, if its models are there; faults that aren't of files are differences."""
    try:
        it.prepared = ready(plan, models=models)
    except CheckpointError as error:
        it.unverified.append(f"the models: {error.message} ({error.path})")
    except PlanError as error:
        faults = errors(error.faults)
        if any(fault.code == "M105" for fault in faults):
            raise
        away = [fault for fault in faults if fault.code.startswith("C")]
        if len(away) < len(faults):
            it.differences.append(
                _faulty([f for f in faults if f not in away], it.folder / PLAN_FILE)
            )
        it.unverified += [f"model {_name(fault)}: {fault.message}" for fault in away]


def _name(fault: Fault) -> str:
    return quoted(str(fault.at[1])) if fault.at[:1] == ("models",) else "files"


def _faulty(faults: list[Fault], path: Path) -> Difference:
    first = faults[0]
    more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    said = f"{PLAN_FILE} can't be compiled: {first.message} [{first.code}]{more}"
    return Difference("plan", PLAN_FILE, said, path)


def _broken(error: CheckpointError) -> Difference:
    byte = "" if error.offset is None else f", byte {error.offset}"
    said = f"the folder is no model: {error.message} ({error.path.name}{byte})"
    return Difference("file", error.path.name, said, error.path)


# ---------------------------------------------------------------------------------- with weights


def verified(
    it: Verification, progress: ByteProgress = lambda _: None, *, threads: int | None = None
) -> Verified:
    """Compare: the tensors, the files beside them, the models' files, and what the plan makes."""
    crew = Crew(threads)
    told = crew.told(progress)
    if it.output is not None:
        found = _digests_on_disk(it.output, crew, told)
        if it.lock is not None:
            it.differences += differing_tensors(it.lock.tensors, found, "the lock")
            it.compared.append(f"{len(found)} tensors with the lock")
        if not it.tensors_only:
            _compare_beside(it, it.output)
        if it.prepared is not None:
            _recompile(it, it.prepared, found, crew, told)
    return Verified(it.folder, tuple(it.compared), tuple(it.differences), tuple(it.unverified))


def _compare_beside(it: Verification, output: Checkpoint) -> None:
    """Compare the configuration, the tokenizer, and how the model generates."""
    it.differences += differing_config(output, it.prepared, it.lock)
    if it.prepared is not None or it.lock is not None:
        it.compared.append(CONFIG)
    expected = expected_beside(it.folder, it.plan, it.prepared, it.lock)
    if expected is None:
        it.unverified.append("the tokenizer's files: nothing says what they should be")
        return
    it.differences += differing_beside(expected, output)
    it.compared.append(f"{len(expected)} files of the tokenizer")


def _digests_on_disk(output: Checkpoint, crew: Crew, progress: ByteProgress) -> _Tensors:
    def stretch(spec: TensorSpec) -> Payload:
        tensor = output.tensors[spec.name]
        return ByteRange(tensor.file, tensor.offset, spec.size)

    return _digests([tensor.spec for tensor in output.tensors.values()], stretch, crew, progress)


def _digests(
    specs: list[TensorSpec],
    payload_of: Callable[[TensorSpec], Payload],
    crew: Crew,
    progress: ByteProgress,
) -> _Tensors:
    found: _Tensors = {}

    def seen(spec: TensorSpec, sha256: str) -> None:
        found[spec.name] = TensorDigest(dtype=spec.dtype, shape=spec.shape, sha256=sha256)

    of_tensors(specs, payload_of, crew, seen, progress)
    return found


def _recompile(
    it: Verification, prepared: Prepared, found: _Tensors, crew: Crew, progress: ByteProgress
) -> None:
    """Compare with what the plan makes, in memory, if it makes it of what was locked."""
    if it.lock is not None:
        differing = list(_of_inputs(prepared, it.lock, crew, progress))
        differing += differing_texts(prepared, it.lock) if _has_texts(prepared) else []
        it.differences += differing
        if differing:
            it.unverified.append("what the plan makes: its models are not those that were locked")
            return
        count = sum(len(model.files) for model in it.lock.models.values())
        it.compared.append(f"{count} files of the models with the lock")
    left = _left_out(it, prepared)
    fitted = fit_bridges(prepared) if not left else None
    outputs = tuple(o for o in prepared.compiled.program.outputs if o.spec.name not in left)
    specs = [output.spec for output in outputs]
    made = _digests(specs, payloads(outputs, fitted=fitted), crew, progress)
    made = {o.spec.name: tensor_digest(o.spec, made[o.spec.name].sha256, fitted) for o in outputs}
    if it.lock is None:
        assert it.output is not None
        there = _without(found, left) | sketched(
            it.output, found, prepared.compiled.program.bridged - left
        )
        it.differences += differing_tensors(made, there, "the plan")
    else:
        what = "what the plan makes of tensor"
        locked = _without(it.lock.tensors, left)
        it.differences += differing_tensors(locked, made, "the lock", what)
    it.compared.append(f"{len(made)} tensors with what the plan makes")


def _has_texts(prepared: Prepared) -> bool:
    return all(path.is_file() for path in prepared.texts.values())


def _left_out(it: Verification, prepared: Prepared) -> frozenset[str]:
    """The tensors that can't be made again: those of bridges whose calibration text is gone."""
    if _has_texts(prepared):
        return frozenset()
    gone = next(path for path in prepared.texts.values() if not path.is_file())
    left = prepared.compiled.program.bridged
    it.unverified.append(f"{len(left)} bridged tensors: their calibration text is gone ({gone})")
    return left


def _without(tensors: _Tensors, left: frozenset[str]) -> _Tensors:
    return {name: digest for name, digest in tensors.items() if name not in left}


def _of_inputs(
    prepared: Prepared, lock: Lock, crew: Crew, progress: ByteProgress
) -> Iterator[Difference]:
    read = inputs(prepared)
    digests: dict[Path, FileDigest] = {}

    def take(path: Path) -> None:
        digests[path] = of_file(path, progress)

    paths = sorted({path for its in read.values() for path in its.values()})
    crew.do([partial(take, path) for path in paths])
    return differing_inputs(read, lock, lambda path, _: digests[path])
