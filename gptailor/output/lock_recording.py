"""Locks recorded while a plan is compiled or computed, and compilations held to a lock."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, final

from gptailor.checkpoint.cache_folder import json_digest
from gptailor.checkpoint.folder import CONFIG
from gptailor.checkpoint.models import is_inner, is_local, only_compared
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.checkpoint.tokenizer_settings import files_without_code
from gptailor.checkpoint.write.digest import (
    UNMEASURED,
    FileDigest,
    KnownDigests,
    of_bytes,
    of_file,
    tensor_digests,
)
from gptailor.checkpoint.write.output_file import ByteProgress
from gptailor.checkpoint.write.tensors import Dismissed, available
from gptailor.evaluation.tokenizer_files import template_file
from gptailor.lang.format import format_plan
from gptailor.output import output as out
from gptailor.output.differences import (
    Fact,
    FactKind,
    Facts,
    Measurement,
    alone,
    gguf_differences,
    lock_differences,
    on_file_types,
    on_methods,
    refuse,
)
from gptailor.output.inputs import inputs
from gptailor.output.lock import (
    Lock,
    LockedGguf,
    LockedModel,
    LockedText,
)
from gptailor.plan.model_dependencies import of_inner_plans
from gptailor.plan.plan import Model, Plan
from gptailor.prepare import (
    Prepared,
    calibration_path,
    pinned,
)
from gptailor.program.fits import texts_read

if TYPE_CHECKING:
    from gptailor.evaluation.fits.fit import Fitted

EARLY_BYTES = 16 * 1024 * 1024
"""Files up to this many bytes are compared before anything is written."""


def plan_digest(plan: Plan) -> str:
    """Return the sha256 of a plan's canonical text, without paths, dtype, search and expectations.

    Its GGUF files are left out too. The paths are the models', the texts' and the chat template's.
    So a plan, and its copy in a compiled folder, have one digest.
    """
    plan = plan.model_copy(update={"search": None, "gguf": ()})
    unread = only_compared(plan)
    models = {
        name: model if model.made is not None else Model(source=name)
        for name, model in plan.models.items()
        if name not in unread
    }
    named = {file for _, file in plan.calibration_texts}
    paths = {file: os.path.realpath(calibration_path(plan, file)) for file in named}
    texts = list(dict.fromkeys(paths[file] for _, file in plan.calibration_texts))
    plan = plan.with_calibration_texts(lambda file: str(texts.index(paths[file])))
    without: dict[str, object] = {"models": models, "dtype": None, "expects": ()}
    if template_file(plan) is not None:
        without["chat_template"] = "./"
    stripped = plan.model_copy(update=without)
    return hashlib.sha256(format_plan(stripped).encode()).hexdigest()


def at_locked_commits(plan: Plan, lock: Lock) -> Plan:
    """Return the plan with models of the Hub at the locked commits, if declared as in the lock."""
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
    pinned_plan = pinned(plan, commits)
    return of_inner_plans(pinned_plan, "commits", inner) if inner else pinned_plan


# ---------------------------------------------------------------------------- before it is compiled


def refuse_early(prepared: Prepared, lock: Lock) -> None:
    """Raise CheckpointError (C703 to C705) for early known differences from a lock.

    Compared are the plan, the dtype, the files' names and sizes, the bytes of small files, the
    calibration texts, the configuration, and the dtypes and shapes of the output's tensors.
    """
    program, dtype = prepared.compiled.program, prepared.dtype
    is_in = f"the output is {dtype or 'of several dtypes'}, but in the lock"
    digest = json_digest(prepared.compiled.config)
    facts: dict[FactKind, Facts] = {
        "plan": alone("plan", plan_digest(prepared.plan), "the plan is not the one"),
        "dtype": alone("dtype", str(dtype), is_in),
        "methods": on_methods(prepared.packages),
        "config digest": alone(CONFIG, digest, f"the output's {CONFIG}"),
        **measured_files(prepared, _measured_early),
    }
    if prepared.plan.gguf:
        facts["gguf"] = on_file_types(file.type.upper() for file in prepared.plan.gguf)
    tensors = tensor_digests(output.spec for output in program.outputs)
    refuse(lock_differences(Measurement.of(lock), Measurement(facts=facts, tensors=tensors)), lock)


def measured_files(prepared: Prepared, measure: Callable[[Path], Fact]) -> dict[FactKind, Facts]:
    """Return the input files of a plan; `measure` reads the models' files.

    Calibration texts are left out if one of them is missing.
    """
    families = out.families(prepared)
    measured: dict[FactKind, Facts] = {
        "families": {
            ("", kind): Fact((family.digest,), path=family.path, name=family.path.name)
            for kind, family in families.items()
        },
        "inputs": {key: measure(path) for key, path in inputs(prepared).items()},
    }
    if all(path.is_file() for path in prepared.texts.values()):
        measured["texts"] = {
            ("", use): Fact((of_file(path).sha256,), _fit_words(use), path, path.name)
            for use, path in prepared.texts.items()
        }
    template = template_file(prepared.plan)
    if template is not None:
        digest = of_file(template).sha256
        measured["template"] = {("", ""): Fact((digest,), path=template, name=template.name)}
    return measured


def _fit_words(use: str) -> str:
    return f"the bridge after {use}" if use.startswith("L") else f"'{use.partition(' ')[0]}'"


def _measured_early(path: Path) -> Fact:
    """Return a file as far as it can be measured without reading a large one."""
    if not path.exists():
        return Fact((None, None), path=path)
    size = path.stat().st_size
    if size <= EARLY_BYTES:
        return Fact.of_file(of_file(path), path)
    return Fact((size, None), f"{size:,}", path)


# --------------------------------------------------------------------------- while it is compiled


@final
class Recording:
    """A context in which a plan is compiled: threads read its inputs at the same time.

    `add_tensor` receives the output's tensors. `gguf` is the entry of a GGUF file, and `gguf_files`
    are the entries of the files that the plan states. `progress` receives the inputs' bytes. With a
    lock to hold to, differences raise CheckpointError (C704, C705). Inputs with `known` digests
    aren't read.
    """

    def __init__(
        self,
        prepared: Prepared,
        held_to: Lock | None = None,
        *,
        fitted: "Fitted | None" = None,
        threads: int | None = None,
        progress: ByteProgress = lambda _: None,
        known: KnownDigests | None = None,
    ) -> None:
        self.prepared = prepared
        self._known = known
        self.held_to = held_to
        self.fitted = fitted
        self._progress = progress
        self.sha256: dict[str, str] = {}
        self.gguf: LockedGguf | None = None
        self.gguf_files: dict[str, LockedGguf] = {}
        names = [output.spec.name for output in prepared.compiled.program.outputs]
        self.sketches = out.fit_sketches(prepared, fitted, names)
        self._paths = inputs(prepared)
        self._digests: dict[tuple[str, str], Future[FileDigest]] = {}
        self._open: deque[tuple[str, str]] = deque(self._paths)
        self._stopped = Event()
        self._pool = ThreadPoolExecutor(threads or available(), thread_name_prefix="gptailor-lock")

    def __enter__(self) -> "Recording":
        digest_of = self._known.of if self._known is not None else of_file
        for key, path in self._paths.items():
            self._digests[key] = self._pool.submit(digest_of, path, self._go_on)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def _go_on(self, size: int) -> None:
        if self._stopped.is_set():
            raise Dismissed
        self._progress(size)

    def add_tensor(self, spec: TensorSpec, sha256: str) -> None:
        """Record a tensor of the output."""
        self.sha256[spec.name] = sha256

    def watching(self, progress: ByteProgress) -> ByteProgress:
        """Return a progress that also refuses an input once it is known to differ.

        Inputs are compared in order, so that every run names the same one.
        """

        def watched(size: int) -> None:
            while self._open and self._digests[self._open[0]].done():
                self._refuse_differing([self._open.popleft()])
            progress(size)

        return watched

    def draft(self, models: Mapping[str, Model]) -> Lock:
        """Return the lock with zeros for its digests; its text is as long as the final one."""
        sizes = {key: path.stat().st_size for key, path in self._paths.items()}
        files = {key: FileDigest(size=size, sha256=UNMEASURED) for key, size in sizes.items()}
        return self._lock(models, files)

    def lock(self, models: Mapping[str, Model]) -> Lock:
        """Return the lock of all inputs and outputs; `models` are its declarations."""
        files = {key: digest.result() for key, digest in self._digests.items()}
        lock = self._lock(models, files)
        if self._known is not None:
            self._known.keep()
        self._refuse_differing(files)
        if (held := self.held_to) is not None:
            measured = Measurement(tensors=lock.tensors)
            refuse(lock_differences(Measurement.of(held), measured), held)
            refuse(gguf_differences(held, self.gguf), held)
        return lock

    def _lock(
        self,
        models: Mapping[str, Model],
        digests: Mapping[tuple[str, str], FileDigest],
    ) -> Lock:
        files: dict[str, dict[str, FileDigest]] = {}
        for (model, name), digest in digests.items():
            files.setdefault(model, {})[name] = digest
        commits = self.prepared.commits
        specs = [output.spec for output in self.prepared.compiled.program.outputs]
        template = template_file(self.prepared.plan)
        stripped = files_without_code(out.beside_weights(self.prepared))
        return Lock(
            plan=plan_digest(self.prepared.plan),
            dtype=self.prepared.dtype,
            models={
                name: LockedModel(
                    **models[name].model_dump(exclude={"made"}), commit=commits.get(name), files=its
                )
                for name, its in files.items()
            },
            families={kind: f.digest for kind, f in out.families(self.prepared).items()},
            methods=self.prepared.packages,
            config=json_digest(self.prepared.compiled.config),
            texts=_locked_texts(self.prepared, self.fitted),
            stripped={name: of_bytes(content) for name, content in stripped.items()},
            chat_template=of_file(template).sha256 if template is not None else None,
            tensors=tensor_digests(specs, self.sha256, self.sketches),
            gguf=self.gguf,
            gguf_files=self.gguf_files,
        )

    def _refuse_differing(self, keys: Iterable[tuple[str, str]]) -> None:
        """Refuse inputs that differ from the lock to hold to, if there is one."""
        if self.held_to is None:
            return
        locked, read = Measurement.of(self.held_to).facts["inputs"], self._digests
        facts = {key: Fact.of_file(read[key].result(), self._paths[key]) for key in keys}
        expected = Measurement(facts={"inputs": {key: locked[key] for key in facts}})
        refuse(lock_differences(expected, Measurement(facts={"inputs": facts})), self.held_to)


def _locked_texts(prepared: Prepared, fitted: "Fitted | None") -> dict[str, LockedText]:
    """Return the texts that the fits read, by their names, with the texts of inner plans."""
    texts = {
        f"{name}.{of}": text
        for name, fits in prepared.inner_fits.items()
        for of, text in fits.texts.items()
    }
    results = out.fit_results(prepared, fitted)
    texts |= texts_read(results)
    locked = {
        name: LockedText(file=FileDigest(size=size, sha256=sha256), tokens=tokens)
        for name, (size, sha256, tokens) in texts.items()
    }
    if "vocabulary" in results:
        numbers = results["vocabulary"].numbers
        counts = {name: int(numbers[name]) for name in ("kept", "total", "unchanged", "after")}
        locked["vocabulary"] = locked["vocabulary"].model_copy(update={"counts": counts})
    return locked
