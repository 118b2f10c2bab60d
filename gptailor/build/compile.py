"""A plan into a model folder: `compile`, all of whose steps can be read here.

load → check → open → check_models → compile_plan → fetch     (`gptailor.prepare`)
     → hold to the lock → fit bridges, heal → write → record
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from gptailor.build.lock import Lock, read_lock
from gptailor.build.output import fit_tensors, payloads, side_files
from gptailor.build.record import Recording, at_locked_commits, refuse_early
from gptailor.checkpoint.files import CheckpointError, is_gguf, refuse_changed
from gptailor.checkpoint.write.side_folder import remove_stale
from gptailor.checkpoint.write.writer import check_target, free_space, located, write_checkpoint
from gptailor.plan.extras import packages_needed, require
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Gap
from gptailor.prepare import SHARD_SIZE, ModelPaths, Prepared, all_declared, ready

if TYPE_CHECKING:
    from gptailor.build.gguf import GgufFile
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
    matrices, which are of the plan's dtype without one: `q8_0`.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails or differs from the lock.
    """
    held_to = locked if isinstance(locked, Lock | None) else read_lock(Path(locked))
    if isinstance(plan, Plan):
        plan = at_locked_commits(plan, held_to) if held_to else plan
        plan = ready(plan, models=models, dtype=dtype, shard_size=shard_size)
    prepared, target = plan, Path(output)
    if device != "cpu":
        require("torch", f"the device {device!r}")
        from gptailor.program.run import device_of  # noqa: PLC0415 (imports torch)

        device_of(device)  # refuses one that isn't there
    file = gguf_file(prepared, target, quantize)
    protected = _refuse_target(prepared, target, file, force=force)
    if held_to:
        refuse_early(prepared, held_to)
        if file is not None:
            file.refuse_early(held_to)

    fitted = fit_tensors(
        prepared, device=device, memory=memory, on_gap=bridging, on_healing=healing
    )

    recording = None
    if held_to is not None or locking:
        recording = Recording(prepared, held_to, fitted=fitted, threads=threads)

    def finish() -> dict[str, bytes]:
        refuse_changed(prepared.stamps)
        return recording.files(target) if recording and file is None else {}

    program = prepared.compiled.program
    make = payloads(program.outputs, device, fitted)
    seen = recording.seen if recording else None
    with recording or nullcontext():
        told = recording.watching(progress) if recording else progress
        in_gguf = None
        if file is not None:
            in_gguf = file.write(
                make, recording, finish,
                force=force, progress=told, protected=protected, threads=threads,
            )  # fmt: skip
        else:
            write_checkpoint(
                target, prepared.shards, make, side_files(prepared, target),
                force=force, progress=told, protected=protected, threads=threads,
                seen=seen, finish=finish,
            )  # fmt: skip
        return Written(
            target,
            prepared.layers,
            program.parameters,
            program.size if file is None else file.size,
            tuple(shard.name for shard in prepared.shards) if file is None else (target.name,),
            recording.lock(all_declared(prepared.declared, prepared.models), in_gguf)
            if recording
            else None,
            fitted.bridges if fitted else {},
            fitted.healed if fitted else None,
            tuple(file.notes) if file is not None else (),
        )


def gguf_file(prepared: Prepared, target: Path, quantize: str | None) -> "GgufFile | None":
    """What a GGUF file is to be, where the output's name says so; None for a folder.

    Raises CheckpointError (C306) for a type of a folder's tensors, and for what can't be written.
    """
    if target.suffix.lower() == ".gguf":
        from gptailor.build.gguf import GgufFile  # noqa: PLC0415 (late: it costs start-up)

        with packages_needed("a GGUF file"):
            return GgufFile(prepared, target, quantize)
    if quantize is not None:
        message = f"{quantize!r} is a type of GGUF's, and the output is a folder"
        raise CheckpointError("C306", message, target, "name the output `….gguf`")
    return None


def _refuse_target(
    prepared: Prepared, target: Path, file: "GgufFile | None", *, force: bool
) -> set[Path]:
    """Raise CheckpointError for a place that can't be written; the sources, which must stay."""
    opened = [model.checkpoint for model in prepared.models.values()]
    protected = {checkpoint.folder for checkpoint in opened}
    read = [file for checkpoint in opened for file in checkpoint.files]
    protected |= {file if is_gguf(file) else file.parent for file in read}
    remove_stale(located(target))
    check_target(target, force=force, protected=protected, single=file is not None)
    size = prepared.size if file is None else file.size
    if (free := free_space(target)) < size:
        message = f"the output takes {size:,} bytes, and {free:,} are free there"
        raise CheckpointError("C305", message, target)
    return protected
