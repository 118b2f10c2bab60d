"""A plan into a model folder: `compile`, all of whose steps can be read here.

load → check → open → check_models → compile_plan → fetch     (`gptailor.prepare`)
     → hold to the lock → fit bridges, heal → write → record
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from gptailor.build.destination import Contents, Destination, ModelFolder
from gptailor.build.lock import Lock, read_lock
from gptailor.build.output import fit_tensors, payloads
from gptailor.build.record import Recording, at_locked_commits
from gptailor.checkpoint.files import CheckpointError, refuse_changed
from gptailor.checks.besides import refuse_absent_texts
from gptailor.plan.extras import packages_needed, require
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Gap
from gptailor.prepare import SHARD_SIZE, ModelPaths, Prepared, all_declared, prepare, ready

if TYPE_CHECKING:
    from gptailor.evaluate.bridge.fit import FittedBridge
    from gptailor.evaluate.heal.heal import HealedLayers, OnHealing


@final
@dataclass(frozen=True)
class Written:
    """What `compile` wrote: a folder or GGUF file, its counts, the lock if one was made or held to.

    The models in the lock are declared as in the plan's text. `bridges` are the fits of the gaps
    that were closed, each named by the layer before it: `L19`; `healed` is what was learned.
    `notes` say what differs in a GGUF file that is no fault.
    """

    folder: Path
    layers: int
    parameters: int
    size: int
    shards: tuple[str, ...]
    lock: Lock | None = None
    bridges: "Mapping[str, FittedBridge]" = field(default_factory=dict)
    healed: "HealedLayers | None" = None
    notes: tuple[str, ...] = ()


def compile(  # noqa: PLR0913 (the verb of the command line, and its flags)
    plan: Plan | Prepared,
    output: str | Path,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], None] = lambda _: None,
    locked: Lock | str | Path | None = None,
    locking: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    memory: int | None = None,
    bridging: Callable[[Gap], None] = lambda _: None,
    healing: "OnHealing | None" = None,
    quantize: str | None = None,
    dry_run: bool = False,
) -> Written:
    """Write the model that a plan declares into a new folder, or GGUF file, all or nothing.

    `models` gives other folders for the plan's names, `dtype` another dtype than the plan's, and
    `shard_size` the most bytes of a file; a plan that is prepared already has all three. `force`
    replaces a folder that is there; `progress` is told of the bytes written. `locked` is a lock, or
    its file: what differs from it is refused, and models of the Hub are taken at its commits.
    `locking` makes a lock, which is in the folder and in what is given back. The work is done by
    `threads` threads, as many as there are cores without that; large merges by `device`, which may
    be `cuda`. Neither changes a byte, but for what is fitted: bridges and healing come before
    anything is written, on `device`, with at most `memory` bytes there at once. `bridging` is told
    of each gap when its turn comes, `healing` how that goes on.

    An output that is called `….gguf` is one file for llama.cpp; `quantize` is the type of its
    matrices, which are of the plan's dtype without one: `q8_0`. A `dry_run` refuses what the run
    would refuse before its first byte, and writes, fetches and computes nothing.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails or differs from the lock.
    """
    lock = locked if isinstance(locked, Lock | None) else read_lock(Path(locked))
    if isinstance(plan, Plan):
        plan = at_locked_commits(plan, lock) if lock else plan
        make = prepare if dry_run else ready
        plan = make(plan, models=models, dtype=dtype, shard_size=shard_size)
    prepared = plan
    if device != "cpu":
        require("torch", f"the device {device!r}")
        from gptailor.program.run import device_of  # imports torch

        device_of(device)  # refuses a missing one
    destination = destination_of(prepared, Path(output), quantize)
    if not dry_run:
        destination.remove_leftovers()
    destination.refuse_unwritable(force=force)
    if (message := destination.lack_of_room) and not dry_run:
        raise CheckpointError("C305", message, destination.path)
    refuse_absent_texts(prepared.plan)
    if lock:
        destination.refuse_differing(lock)
    written = Written(
        destination.path,
        prepared.layers,
        prepared.compiled.program.parameters,
        destination.size,
        destination.files,
        notes=(*destination.notes, message) if message else tuple(destination.notes),
    )
    if dry_run:
        return written

    fitted = fit_tensors(
        prepared, device=device, memory=memory, on_gap=bridging, on_healing=healing
    )
    recording = None
    if lock is not None or locking:
        recording = Recording(prepared, lock, fitted=fitted, threads=threads)
    with recording or nullcontext():
        contents = Contents(
            payload_of=payloads(prepared.compiled.program.outputs, device, fitted),
            recording=recording,
            check_unchanged=lambda: refuse_changed(prepared.stamps),
            progress=recording.watching(progress) if recording else progress,
            force=force,
            threads=threads,
        )
        gguf = destination.write(contents)
        made_lock = None
        if recording is not None:
            made_lock = recording.lock(all_declared(prepared.declared, prepared.models), gguf)
    if fitted is not None:
        written = replace(written, bridges=fitted.bridges, healed=fitted.healed)
    return replace(written, lock=made_lock)


def destination_of(prepared: Prepared, path: Path, quantize: str | None) -> Destination:
    """Return the destination that a path names: a GGUF file by its suffix, else a folder.

    Raises CheckpointError (C306) for a type of a folder's tensors, and for models that can't be
    written as GGUF.
    """
    if path.suffix.lower() == ".gguf":
        from gptailor.build.gguf import GgufFile

        with packages_needed("a GGUF file"):
            return GgufFile(prepared, path, quantize)
    if quantize is not None:
        message = f"{quantize!r} is a type of GGUF's, and the output is a folder"
        raise CheckpointError("C306", message, path, "name the output `….gguf`")
    return ModelFolder(prepared, path)
