"""A plan into a model folder: `compile`, with all its steps in order; `lock` keeps the digests.

load → check → open → check_models → compile_plan → fetch     (`gptailor.prepare`)
     → hold to the lock → fit inner plans → fit MLPs and bridges, heal → weigh columns
     → write → record
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.kinds import is_weighted, quantised_kind
from gptailor.checkpoint.token_cut import TokenCutReport
from gptailor.checkpoint.write.digest import KnownDigests
from gptailor.checkpoint.write.side_folder import remove_stale
from gptailor.checkpoint.write.tensors import Crew, digests_of
from gptailor.checkpoint.write.writer import free_space, located
from gptailor.checks.texts import refuse_unusable_texts, text_errors_as_faults
from gptailor.evaluation.fits.inner_plans import with_inner_fits
from gptailor.lang.parse import plan_or_file
from gptailor.output.destination import Contents, Destination, ModelFolder, gguf_beside
from gptailor.output.lock import Lock, LockedGguf, read_lock
from gptailor.output.lock_recording import Recording, at_locked_commits
from gptailor.output.output import fit_results, payloads
from gptailor.output.update import Update
from gptailor.plan.arguments import Positive, check_fields
from gptailor.plan.events import FitResult, OnEvent, counting_bytes, ignore_events
from gptailor.plan.faults import Fault, PlanError, listed, locate
from gptailor.plan.optional_packages import installed, packages_needed, require
from gptailor.plan.plan import Plan
from gptailor.prepare import (
    SHARD_SIZE,
    Dtype,
    ModelPaths,
    Prepared,
    all_declared,
    calibration_path,
    prepare,
    ready,
)
from gptailor.program.fits import token_cut_report
from gptailor.reporting.quantities import byte_count

if TYPE_CHECKING:
    from gptailor.evaluation.fits.bridge.states import CalibrationText
    from gptailor.evaluation.fits.fit import Fitted, RepairEstimate
    from gptailor.evaluation.fits.importance import ImportanceMatrix


@final
@dataclass(frozen=True)
class CompileResult:
    """The output of `compile`: a folder or GGUF file, its counts, and the lock, if there is one.

    The models in the lock are declared as in the plan's text. `fits` are the results of fits and
    healing by their places: `vocabulary`, `experts`, `width`, the layer before a closed gap such as
    `L19`, `heal`. `notes` are harmless differences in a GGUF file. `update` is the difference to
    the folder that was there, if gptailor had written it. `estimates` are the cost of fits and
    healing, of a dry run alone. `file_type` is the type of a GGUF file, such as `Q4_K_M`. `gguf`
    has the results of the GGUF files beside a folder.
    """

    folder: Path
    layers: int
    parameters: int
    size: int
    shards: tuple[str, ...]
    lock: Lock | None = field(default=None, repr=False)
    fits: Mapping[str, FitResult] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    update: Update | None = field(default=None, repr=False)
    estimates: "tuple[RepairEstimate, ...]" = field(default=(), repr=False)
    file_type: str | None = None
    gguf: "tuple[CompileResult, ...]" = field(default=(), repr=False)

    @property
    def vocabulary(self) -> TokenCutReport | None:
        """The effect of a smaller vocabulary on its text, if the plan has one.

        `kept` of `total` tokens stay. The text of `size` bytes was split into `before` tokens, and
        `unchanged` of them stay as they were. It is now split into `after` tokens; `bytewise` of
        them are bytes of characters beyond ASCII, or unknown.
        """
        result = self.fits.get("vocabulary")
        return None if result is None else token_cut_report(result)


@final
@dataclass(frozen=True)
class ComputeOptions:
    """The resources of a compilation. They change only the bytes of fitted tensors.

    `threads` threads make tensors, by default one per core. Large merges, bridges and healing run
    on `device`, which may be `cuda`. Bridging and healing hold at most `memory` bytes there, which
    may be a text such as `2GB`. A file of weights has at most `shard_size` bytes.
    """

    threads: Positive | None = None
    device: str = "cpu"
    memory: Positive | str | None = None
    shard_size: Positive = SHARD_SIZE

    def __post_init__(self) -> None:
        check_fields(self)


def compile(  # noqa: PLR0913 (the verb of the command line, and its flags)
    plan: Plan | str | Path | Prepared,
    output: str | Path,
    *,
    models: ModelPaths | None = None,
    dtype: Dtype | None = None,
    quantize: str | None = None,
    gguf: Sequence[str] = (),
    imatrix: str | Path | None = None,
    force: bool = False,
    locked: Lock | str | Path | None = None,
    locking: bool = False,
    dry_run: bool = False,
    compute: ComputeOptions | None = None,
    on_event: OnEvent = ignore_events,
) -> CompileResult:
    """Write the model that a plan or its file declares into a folder or GGUF file, all or nothing.

    The folder is new, or one that gptailor wrote from the same plan's file and that nobody changed
    since: then tensors that are made as before are copied from it, and a lock in it is renewed.
    `force` replaces any model, and computes all.

    `models` gives other folders for the plan's names, and `dtype` another dtype than the plan's; a
    prepared plan already has both, and the size of its files. `locked` is a lock, or its file:
    differences from it are refused, and models of the Hub are taken at its commits. `locking` makes
    a lock, which is in the folder and in the result. `compute` has threads, device, memory and the
    size of files. Bridges are fitted and layers healed before anything is written. `on_event`
    receives the bytes that are written, and the progress of bridging and healing; see
    `gptailor.plan.events`.

    An output called `….gguf` is one file for llama.cpp. `quantize` is its type, such as `q4_k_m`.
    `gguf` are types of files that are written beside a folder: `out-Q4_K_M.gguf` beside `out`.
    `imatrix` is a calibration text: the finished plan reads 16,384 tokens of it, and the mean
    squares of the matrices' inputs weigh the errors of quantisation. Without these three, the
    plan's `gguf` statements decide; with one of them, the output is as if the plan had no such
    statement. A `….gguf` file of neither has the plan's dtype. Each output is complete or missing.
    A `dry_run` makes all checks that come before the first byte, and writes, fetches and computes
    nothing.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError for a
    wrong file, disk or device, and for a difference from the lock.
    """
    compute = compute or ComputeOptions()
    lock = locked if isinstance(locked, Lock | None) else read_lock(Path(locked))
    if isinstance(plan, Prepared):
        prepared = plan
    else:
        prepared = prepared_as_locked(
            plan_or_file(plan), lock, models, dtype, compute.shard_size, dry_run=dry_run
        )
    _refuse_missing(compute.device)
    prepared = with_chosen_files(prepared, quantize, gguf, imatrix)
    destinations = tuple(_destinations(prepared, Path(output), quantize, gguf, imatrix))
    texts = {each.text.path: each.text for each in destinations if each.text is not None}
    for destination in destinations:
        if not dry_run:
            remove_stale(located(destination.path))
        destination.claim(force=force)
    shards = [shard for destination in destinations for shard in destination.shards]
    size, free = sum(shard.size for shard in shards), free_space(destinations[0].path)
    message = f"the output needs {size:,} bytes, but {free:,} are free"
    if free < size and not dry_run:
        raise CheckpointError("C305", message, destinations[0].path)
    refuse_unusable_texts(prepared.checked)
    if lock:
        for destination in destinations:
            destination.refuse_differing(lock)
    if dry_run:
        first, *rest = (_planned(each, locking=locking) for each in destinations)
        notes = (*first.notes, message) if free < size else first.notes
        estimates = _estimates(prepared, compute, [*texts.values()])
        return replace(first, notes=notes, estimates=estimates, gguf=tuple(rest))

    device, memory = compute.device, byte_count(compute.memory)
    complete = with_inner_fits(prepared, device=device, memory=memory, on_event=on_event)
    if complete is not prepared:
        return compile(
            complete,
            output,
            quantize=quantize,
            gguf=gguf,
            imatrix=imatrix,
            force=force,
            locked=lock,
            locking=locking,
            compute=compute,
            on_event=on_event,
        )
    fitted = fit_tensors(prepared, device=device, memory=memory, on_event=on_event)
    importance = {
        path: _importance_of(
            prepared, text, fitted, device=device, memory=memory, on_event=on_event
        )
        for path, text in texts.items()
    }
    progress = counting_bytes(on_event)
    payload_of = payloads(prepared.compiled.program.outputs, compute.device, fitted)
    contents = Contents(payload_of, fitted, importance, compute.threads)
    first, *rest = _all_written(destinations, contents, lock, locking, progress)
    return replace(first, gguf=tuple(rest))


def _importance_of(
    prepared: Prepared, text: "CalibrationText", fitted: "Fitted | None", **means: Any
) -> "ImportanceMatrix":
    from gptailor.evaluation.fits.importance import importance_matrix

    return importance_matrix(prepared, text, fitted, **means)


def with_chosen_files(
    prepared: Prepared, quantize: str | None, gguf: Sequence[str], imatrix: str | Path | None
) -> Prepared:
    """Return a plan without its `gguf` statements if one of the options replaces them."""
    if not (prepared.plan.gguf and (quantize or gguf or imatrix)):
        return prepared
    plan = prepared.plan.model_copy(update={"gguf": ()})
    checked = prepared.checked
    return replace(
        prepared, checked=replace(checked, resolved=replace(checked.resolved, declared=plan))
    )


def fit_tensors(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> "Fitted | None":
    """Return the tensors that fits and healing change; None, and no import, without either.

    The arguments are the same as in `gptailor.evaluation.fits.repair.fit`. Raises PlanError for an
    unusable text.
    """
    if not prepared.repaired:
        return None
    refuse_unusable_texts(prepared.checked)
    fewer = "experts" in prepared.plan.cuts
    require("torch", "fewer experts" if fewer else "a narrowed, bridged or healed plan")
    from gptailor.evaluation.fits.repair import fit

    with text_errors_as_faults(prepared.plan):
        return fit(prepared, device=device, memory=memory, on_event=on_event, anew=anew)


def prepared_as_locked(
    plan: Plan,
    lock: Lock | None,
    models: ModelPaths | None,
    dtype: Dtype | None,
    shard_size: int,
    *,
    dry_run: bool,
) -> Prepared:
    """Prepare a plan, models of the Hub at a lock's commits; fetch weights unless `dry_run`."""
    plan = at_locked_commits(plan, lock) if lock else plan
    make = prepare if dry_run else ready
    return make(plan, models=models, dtype=dtype, shard_size=shard_size)


def _refuse_missing(device: str) -> None:
    """Raise TailorError for a missing device."""
    if device != "cpu":
        require("torch", f"the device {device!r}")
        from gptailor.evaluation.fits.heal.process_group import processes
        from gptailor.program.devices import device_of, devices_of

        devices_of(device_of(device), processes())


def _planned(destination: Destination, *, locking: bool = False) -> CompileResult:
    """Return the result of an output before it is written, `locking` with its lock's size."""
    prepared = destination.prepared
    if locking:
        destination.plan_lock()
    return CompileResult(
        destination.path,
        len(prepared.resolved.kept),
        prepared.compiled.program.parameters,
        destination.weights_size,
        tuple(shard.name for shard in destination.shards),
        notes=tuple(destination.notes),
        update=destination.update,
        file_type=destination.quantize,
    )


def _all_written(
    destinations: Sequence[Destination],
    contents: Contents,
    lock: Lock | None,
    locking: bool,
    progress: Callable[[int], None],
) -> list[CompileResult]:
    """Write all outputs, and return their results in order.

    A folder is written first. If its plan states files, the folder is written last, because its
    lock has the files' entries.
    """
    is_stated = bool(destinations[0].prepared.plan.gguf)
    step = -1 if is_stated else 1
    locking |= is_stated and any(each.update and each.update.locked for each in destinations)
    files: dict[str, LockedGguf] = {}
    results = []
    for destination in destinations[::step]:
        known = files if is_stated and destination.quantize is None else {}
        results.append(_written(destination, contents, known, lock, locking, progress))
        if (made := results[-1].lock) is not None and made.gguf is not None:
            files[made.gguf.quantize or ""] = made.gguf
    return results[::step]


def _written(
    destination: Destination,
    contents: Contents,
    files: Mapping[str, LockedGguf],
    lock: Lock | None,
    locking: bool,
    progress: Callable[[int], None],
) -> CompileResult:
    """Write an output, all or nothing, and return its result; its lock has the entries `files`."""
    prepared, recording = destination.prepared, None
    if lock is not None or locking or (destination.update and destination.update.locked):
        known = KnownDigests() if lock is None else None  # a lock is held to by reading
        recording = Recording(
            prepared, lock, fitted=contents.fitted, threads=contents.threads, known=known
        )
        recording.gguf_files = dict(files)
        progress = recording.watching(progress)
    with recording or nullcontext():
        destination.write(contents, recording, progress)
        made_lock = None
        if recording is not None:
            made_lock = recording.lock(all_declared(prepared.declared, prepared.models))
    return replace(
        _planned(destination),
        lock=made_lock,
        fits=fit_results(prepared, contents.fitted),
    )


def _estimates(
    prepared: Prepared, compute: ComputeOptions, texts: "Sequence[CalibrationText]"
) -> "tuple[RepairEstimate, ...]":
    """Return the estimated cost of fits, healing and importance matrices; () without torch."""
    if not (prepared.repaired or prepared.inner_plans or texts) or not installed("torch"):
        return ()
    from gptailor.evaluation.fits.repair import repair_estimates

    return tuple(
        repair_estimates(
            prepared,
            device=compute.device,
            memory=byte_count(compute.memory),
            importance_tokens=sum(text.tokens for text in texts),
        )
    )


def _chosen_text(
    prepared: Prepared, text: str | Path | None, output: Path, types: Sequence[str | None]
) -> "CalibrationText | None":
    """Return the text of an importance matrix for GGUF files of some types; None without a text.

    Raises CheckpointError (C306) if the matrix changes no file, CalibrationError for an unusable
    text.
    """
    if text is None:
        return None
    kinds = [quantised_kind(kind) for kind in types]
    if not any(map(is_weighted, kinds)):
        got = listed([kind.lower() for kind in kinds if kind is not None]) or "no type"
        message = f"expected a GGUF type that can use an importance matrix, got {got}"
        help_ = "add a quantised GGUF file such as q4_k_m, or remove --imatrix"
        raise CheckpointError("C306", message, output, help_)
    return _importance_text(prepared, Path(text))


def _importance_text(prepared: Prepared, path: Path) -> "CalibrationText":
    require("torch", "an importance matrix")
    from gptailor.evaluation.fits.importance import importance_text

    return importance_text(prepared, path)


def _stated_destinations(prepared: Prepared, path: Path) -> Iterator[Destination]:
    """Return a folder's and the plan's GGUF files' destinations, or its only file's.

    Raises PlanError for a statement of a file that can't be made, CheckpointError (C306) for one
    file of a plan that states several.
    """
    plan, alone = prepared.plan, path.suffix.lower() == ".gguf"
    if not alone:
        yield ModelFolder(prepared, path)
    elif len(plan.gguf) > 1:
        got = listed([file.type for file in plan.gguf])
        message = f"expected one statement 'gguf' for one file, got {got}"
        help_ = "name a folder, or choose a type with --quantize"
        raise CheckpointError("C306", message, path, help_)
    for i, file in enumerate(plan.gguf):
        with text_errors_as_faults(plan):
            on = None if file.on is None else calibration_path(plan, file.on)
            text = None if on is None else _importance_text(prepared, on)
        try:
            target = path if alone else gguf_beside(path, file.type)
            made = _destination_of(prepared, target, file.type, text)
        except CheckpointError as error:
            fault = Fault(error.code, error.message, ("gguf", i), error.help)
            raise PlanError(locate([fault], plan.origin)) from error
        yield made


def _destinations(
    prepared: Prepared,
    path: Path,
    quantize: str | None,
    gguf: Sequence[str],
    imatrix: str | Path | None,
) -> Iterator[Destination]:
    """Return the destinations of the output and of GGUF files beside a folder.

    Raises CheckpointError (C306), also for a type that is given twice.
    """
    if prepared.plan.gguf:
        yield from _stated_destinations(prepared, path)
        return
    text = _chosen_text(prepared, imatrix, path, (quantize, *gguf))
    yield _destination_of(prepared, path, quantize, text)
    if not gguf:
        return
    kinds = [quantised_kind(kind) or "" for kind in gguf]
    if path.suffix.lower() == ".gguf":
        message = "expected a folder as the output, got a GGUF file"
        help_ = "name a folder; gptailor writes the files of 'gguf' next to it"
        raise CheckpointError("C306", message, path, help_)
    if twice := [kind for i, kind in enumerate(kinds) if kind in kinds[:i]]:
        message = f"expected each type once, got {twice[0].lower()} twice"
        raise CheckpointError("C306", message, path, "remove one of the two")
    for kind in kinds:
        yield _destination_of(prepared, gguf_beside(path, kind), kind, text)


def _destination_of(
    prepared: Prepared, path: Path, quantize: str | None, text: "CalibrationText | None" = None
) -> Destination:
    """Return the destination that a path names: a GGUF file by its suffix, else a folder.

    `text` is an importance matrix's text. Raises CheckpointError (C306) for a type of a folder's
    tensors, and for models that can't be written as GGUF.
    """
    if path.suffix.lower() == ".gguf":
        from gptailor.output.gguf.file import GgufFile

        with packages_needed("a GGUF file"):
            return GgufFile(prepared, path, quantize, text)
    if quantize is not None:
        message = f"expected a file that ends in .gguf for {quantize!r}, got a folder"
        raise CheckpointError("C306", message, path, "name the output `….gguf`")
    return ModelFolder(prepared, path)


def lock(
    plan: Plan | str | Path | Prepared,
    *,
    models: ModelPaths | None = None,
    dtype: Dtype | None = None,
    threads: Positive | None = None,
    on_event: OnEvent = ignore_events,
) -> Lock:
    """Return the lock of a plan or its file: digests of all inputs, and of each output tensor.

    The output is computed in memory, a chunk at a time, and not kept; `Lock.write` writes the lock.
    Healing is run again; no kept result is used.
    `on_event` receives the bytes that were read or made, and the progress of bridges and healing.
    `models`, `dtype` and `threads` are as in `compile`.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError for a
    wrong file, disk or device.
    """
    prepared = (
        plan
        if isinstance(plan, Prepared)
        else ready(plan_or_file(plan), models=models, dtype=dtype)
    )
    prepared = with_inner_fits(prepared, anew=True, on_event=on_event)
    fitted = fit_tensors(prepared, anew=True, on_event=on_event)
    crew = Crew(threads)
    outputs = prepared.compiled.program.outputs
    progress = crew.exclusive(counting_bytes(on_event))
    files = [*_stated_destinations(prepared, Path("output"))][1:] if prepared.plan.gguf else []
    with Recording(prepared, fitted=fitted, threads=threads, progress=progress) as recording:
        payload_of = payloads(outputs, fitted=fitted)
        made = {output.spec: payload_of(output.spec) for output in outputs}
        recording.sha256 = digests_of(made, crew, progress)
        for file in files:
            remade, sketches = file.remade(fitted, ())
            entry = file.locked(digests_of(remade, crew, lambda _: None), sketches)
            recording.gguf_files[entry.quantize or ""] = entry
        return recording.lock(all_declared(prepared.declared, prepared.models))
