"""Locks made while a plan is compiled or computed, and compilations held to a lock."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, final

from gptailor.build import output as out
from gptailor.build.differences import (
    FileUse,
    MeasuredFile,
    MeasuredFiles,
    MeasuredPlan,
    MeasuredSettings,
    Measurement,
    gguf_differences,
    lock_differences,
    refuse,
)
from gptailor.build.lock import LOCK_FILE, Lock, LockedGguf, LockedModel, LockedText
from gptailor.build.tokenizer import template_file
from gptailor.checkpoint.folder import CONFIG
from gptailor.checkpoint.foreign_code import files_without_code
from gptailor.checkpoint.models import is_inner, is_local
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.checkpoint.write.digest import (
    UNMEASURED,
    FileDigest,
    TensorDigest,
    of_bytes,
    of_file,
    of_tensors,
)
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Crew, available
from gptailor.lang.format import format_plan
from gptailor.plan.events import OnEvent, counting_bytes, ignore_events
from gptailor.plan.model_dependencies import at_commits
from gptailor.plan.plan import Model, Plan
from gptailor.prepare import ModelPaths, Prepared, all_declared, pinned, ready

if TYPE_CHECKING:
    from gptailor.evaluate.repair import Fitted

EARLY_BYTES = 16 * 1024 * 1024
"""Files up to this many bytes are compared before anything is written."""


def plan_digest(plan: Plan) -> str:
    """The sha256 of a plan's canonical text, without what the machine and the caller decide.

    That is where the models, the texts and the chat template are, and the dtype. So a plan, and
    its copy in a compiled folder, have one digest.
    """
    models = {
        name: model if model.made is not None else Model(source=name)
        for name, model in plan.models.items()
    }
    heal = plan.heal
    named = [bridge.on for bridge in plan.bridges] + ([heal.on] if heal is not None else [])
    texts = list(dict.fromkeys(named))
    bridges = tuple(b.model_copy(update={"on": str(texts.index(b.on))}) for b in plan.bridges)
    if heal is not None:
        heal = heal.model_copy(update={"on": str(texts.index(heal.on))})
    without: dict[str, object] = {"models": models, "bridges": bridges, "heal": heal, "dtype": None}
    if template_file(plan) is not None:
        without["chat_template"] = "./"
    stripped = plan.model_copy(update=without)
    return hashlib.sha256(format_plan(stripped).encode()).hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """The sha256 of a configuration as JSON, its keys sorted."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def at_locked_commits(plan: Plan, lock: Lock) -> Plan:
    """The plan with each model of the Hub at the commit that was locked, if it was declared so."""
    commits = {
        name: locked.commit
        for name, locked in lock.models.items()
        if locked.commit is not None
        and (model := plan.models.get(name)) is not None
        and (model.source, model.revision) == (locked.source, locked.revision)
        and not is_local(model.source)
    }
    inner = {
        name: (locked.source, locked.revision, locked.commit)
        for name, locked in lock.models.items()
        if locked.commit is not None and is_inner(plan, name)
    }
    found = pinned(plan, commits)
    return at_commits(found, inner) if inner else found


# ---------------------------------------------------------------------------- before it is compiled


def refuse_early(prepared: Prepared, lock: Lock) -> None:
    """Raise CheckpointError (C703 to C705) for what differs from a lock, as far as is known now.

    That is the plan, the dtype, which files are read, their sizes, the bytes of small ones, the
    calibration texts, the configuration, and what the output's tensors are.
    """
    plan = MeasuredPlan(plan_digest(prepared.plan), out.used_dtype(prepared))
    changed = f"the output's {CONFIG} is not the one that was locked"
    digest = config_digest(out.config(prepared))
    specs = (output.spec for output in prepared.compiled.program.outputs)
    planned = Measurement(
        plan=plan,
        files=measured_files(prepared, _measured_early),
        settings=MeasuredSettings(digest, name=CONFIG, changed=changed),
        tensors={spec.name: out.tensor_digest(spec, UNMEASURED, None) for spec in specs},
    )
    refuse(lock_differences(Measurement.of(lock), planned), lock)


def measured_files(
    prepared: Prepared, measure: Callable[[Path], MeasuredFile]
) -> dict[FileUse, MeasuredFiles]:
    """Return the files that a plan is compiled from; `measure` reads those of the models.

    Calibration texts are left out where one of them is gone.
    """
    read = out.inputs(prepared)
    families = out.families(prepared)
    measured: dict[FileUse, MeasuredFiles] = {
        "families": {("", t): MeasuredFile(f.path, sha256=f.digest) for t, f in families.items()},
        "inputs": {
            (model, name): measure(path)
            for model, its in read.items()
            for name, path in its.items()
        },
    }
    if all(path.is_file() for path in prepared.texts.values()):
        texts = prepared.texts.items()
        measured["texts"] = {("", use): MeasuredFile.of(of_file(p), p) for use, p in texts}
    template = template_file(prepared.plan)
    if template is not None:
        digest = of_file(template).sha256
        measured["template"] = {("", ""): MeasuredFile(template, sha256=digest)}
    return measured


def _measured_early(path: Path) -> MeasuredFile:
    """Return a file as far as it can be measured without reading a large one."""
    if not path.exists():
        return MeasuredFile(path)
    size = path.stat().st_size
    small = size <= EARLY_BYTES
    return MeasuredFile.of(of_file(path), path) if small else MeasuredFile(path, size)


# --------------------------------------------------------------------------- while it is compiled


@final
@dataclass(frozen=True, slots=True)
class _Hashed:
    """A file of a model, and its digest once a thread has it."""

    model: str
    name: str
    path: Path
    digest: "Future[FileDigest]"


@final
class _Stopped(Exception):  # noqa: N818 (no error: whoever would have used the digest is gone)
    """The recording ended before a file was read."""


@final
class Recording:
    """A context in which a plan is compiled: threads read its inputs at the same time.

    `seen` is to be told of the output's tensors; `progress` is told of the inputs' bytes. Held to a
    lock, it refuses what differs from that by CheckpointError (C704, C705).
    """

    def __init__(
        self,
        prepared: Prepared,
        held_to: Lock | None = None,
        *,
        fitted: "Fitted | None" = None,
        threads: int | None = None,
        progress: ByteProgress = lambda _: None,
    ) -> None:
        self.prepared = prepared
        self.held_to = held_to
        self.fitted = fitted
        self._progress = progress
        self._tensors: dict[str, TensorDigest] = {}
        self._hashed: list[_Hashed] = []
        self._open: deque[_Hashed] = deque()
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(threads or available(), thread_name_prefix="gptailor-lock")

    def __enter__(self) -> "Recording":
        for model, its in out.inputs(self.prepared).items():
            for name, path in its.items():
                made = self._pool.submit(of_file, path, self._go_on)
                self._hashed.append(_Hashed(model, name, path, made))
        self._open = deque(self._hashed)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def _go_on(self, size: int) -> None:
        if self._stopped.is_set():
            raise _Stopped
        self._progress(size)

    def seen(self, spec: TensorSpec, sha256: str) -> None:
        """Take down a tensor of the output."""
        self._tensors[spec.name] = out.tensor_digest(spec, sha256, self.fitted)

    def watching(self, progress: ByteProgress) -> ByteProgress:
        """The same progress, which refuses an input once it is known to differ.

        Inputs are looked at in their order, so that the same one is named in every run.
        """

        def told(size: int) -> None:
            while self._open and self._open[0].digest.done():
                self._refuse_differing([self._open.popleft()])
            progress(size)

        return told

    def files(self, target: Path) -> dict[str, bytes]:
        """The lock as a file of the output's folder, its sources those of the plan in there."""
        return {LOCK_FILE: self.lock(out.used_models(self.prepared, target)).text().encode()}

    def draft(self, models: Mapping[str, Model], gguf: LockedGguf) -> Lock:
        """The lock before its digests are known, which are zeros: its text is as long."""
        sizes = ((one, one.path.stat().st_size) for one in self._hashed)
        files = ((one, FileDigest(size=size, sha256=UNMEASURED)) for one, size in sizes)
        specs = (output.spec for output in self.prepared.compiled.program.outputs)
        tensors = {spec.name: out.tensor_digest(spec, UNMEASURED, self.fitted) for spec in specs}
        return self._lock(models, files, tensors, gguf)

    def lock(self, models: Mapping[str, Model], gguf: LockedGguf | None = None) -> Lock:
        """The lock of all that was read and made; `models` are declared in it as given."""
        files = ((one, one.digest.result()) for one in self._hashed)
        lock = self._lock(models, files, self._tensors, gguf)
        self._refuse_differing(self._hashed)
        if (held := self.held_to) is not None:
            made = Measurement(tensors=lock.tensors)
            refuse(lock_differences(Measurement.of(held), made), held)
            if gguf is not None:
                refuse(gguf_differences(held, gguf), held)
        return lock

    def _lock(
        self,
        models: Mapping[str, Model],
        digests: Iterable[tuple[_Hashed, FileDigest]],
        tensors: Mapping[str, TensorDigest],
        gguf: LockedGguf | None,
    ) -> Lock:
        files: dict[str, dict[str, FileDigest]] = {}
        for one, digest in digests:
            files.setdefault(one.model, {})[one.name] = digest
        commits = self.prepared.commits
        bridges = self.fitted.bridges if self.fitted is not None else {}
        healed = self.fitted.healed if self.fitted is not None else None
        template = template_file(self.prepared.plan)
        return Lock(
            plan=plan_digest(self.prepared.plan),
            dtype=out.used_dtype(self.prepared),
            models={
                name: LockedModel(
                    **models[name].model_dump(exclude={"made"}), commit=commits.get(name), files=its
                )
                for name, its in files.items()
            },
            families={kind: one.digest for kind, one in out.families(self.prepared).items()},
            config=config_digest(out.config(self.prepared)),
            bridges={gap: LockedText(file=b.digest, tokens=b.tokens) for gap, b in bridges.items()},
            heal=LockedText(file=healed.digest, tokens=healed.tokens) if healed else None,
            stripped=self._stripped(),
            chat_template=of_file(template).sha256 if template is not None else None,
            tensors=dict(tensors),
            gguf=gguf,
        )

    def _stripped(self) -> dict[str, FileDigest]:
        files = files_without_code(out.beside_weights(self.prepared))
        return {name: of_bytes(content) for name, content in files.items()}

    def _refuse_differing(self, hashed: Iterable[_Hashed]) -> None:
        """Refuse inputs that are not as locked, if there is a lock to hold to."""
        if self.held_to is None:
            return
        models = self.held_to.models
        locked, found = {}, {}
        for one in hashed:
            key = one.model, one.name
            locked[key] = MeasuredFile.of(models[one.model].files[one.name])
            found[key] = MeasuredFile.of(one.digest.result(), one.path)
        expected, read = (Measurement(files={"inputs": files}) for files in (locked, found))
        refuse(lock_differences(expected, read), self.held_to)


def lock(
    plan: Plan | Prepared,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    on_event: OnEvent = ignore_events,
) -> Lock:
    """The lock of a plan: digests of all that it reads, and of each tensor that it makes.

    The output is made in memory, a chunk at a time, and not kept; `Lock.write` writes the lock.
    Healing learns anew, whatever was learned before.
    `on_event` receives the bytes that were read or made, and how bridging and healing go on.
    `models`, `dtype` and `threads` are as `compile` has them.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails.
    """
    prepared = ready(plan, models=models, dtype=dtype) if isinstance(plan, Plan) else plan
    fitted = out.fit_tensors(prepared, anew=True, on_event=on_event)
    crew = Crew(threads)
    outputs = prepared.compiled.program.outputs
    told = crew.told(counting_bytes(on_event))
    with Recording(prepared, fitted=fitted, threads=threads, progress=told) as recording:
        specs = [output.spec for output in outputs]
        of_tensors(specs, out.payloads(outputs, fitted=fitted), crew, recording.seen, told)
        return recording.lock(all_declared(prepared.declared, prepared.models))
