"""A plan into a model folder: `compile`, all of whose steps can be read here.

load → check → open → check_models → compile_plan → fetch     (`gptailor.prepare`)
     → hold to the lock → fit bridges → write → record
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from gptailor.build.lock import Lock, read_lock
from gptailor.build.output import fit_bridges, payloads, side_files
from gptailor.build.record import Recording, at_locked_commits, refuse_early
from gptailor.checkpoint.files import CheckpointError, is_gguf, refuse_changed
from gptailor.checkpoint.write.side_folder import remove_stale
from gptailor.checkpoint.write.writer import check_target, free_space, located, write_checkpoint
from gptailor.plan.layers import Gap
from gptailor.plan.plan import Plan
from gptailor.prepare import SHARD_SIZE, ModelPaths, Prepared, ready

if TYPE_CHECKING:
    from gptailor.evaluate.bridge.fit import FittedBridge


@final
@dataclass(frozen=True)
class Written:
    """What `compile` wrote: the folder, its counts, and the lock if one was made or held to.

    The models in the lock are declared as in the plan's text. `bridges` are the fits of the gaps
    that were closed, each named by the layer before it: `L19`.
    """

    folder: Path
    layers: int
    parameters: int
    size: int
    shards: tuple[str, ...]
    lock: Lock | None = None
    bridges: "Mapping[str, FittedBridge]" = field(default_factory=dict)


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
) -> Written:
    """Write the model that a plan declares into a new folder, all or nothing.

    `models` gives other folders for the plan's names, `dtype` another dtype than the plan's, and
    `shard_size` the most bytes of a file; a plan that is prepared already has all three. `force`
    replaces a folder that is there; `progress` is told of the bytes written. `locked` is a lock, or
    its file: what differs from it is refused, and models of the Hub are taken at its commits.
    `locking` makes a lock, which is in the folder and in what is given back. The work is done by
    `threads` threads, as many as there are cores without that; large merges by `device`, which may
    be `cuda`. Neither changes a byte, but for a bridge's rounding: bridges are fitted before
    anything is written, on `device`, with at most `memory` bytes of weights there at once.
    `bridging` is told of each gap when its turn comes.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails or differs from the lock.
    """
    held_to = locked if isinstance(locked, Lock | None) else read_lock(Path(locked))
    if isinstance(plan, Plan):
        plan = at_locked_commits(plan, held_to) if held_to else plan
        plan = ready(plan, models=models, dtype=dtype, shard_size=shard_size)
    prepared, target = plan, Path(output)
    if device != "cpu":
        from gptailor.program.run import device_of  # noqa: PLC0415 (imports torch)

        device_of(device)  # refuses one that isn't there
    protected = _refuse_target(prepared, target, force=force)
    if held_to:
        refuse_early(prepared, held_to)

    fitted = fit_bridges(prepared, device=device, memory=memory, on_gap=bridging)

    recording = None
    if held_to is not None or locking:
        recording = Recording(prepared, held_to, fitted=fitted, threads=threads)

    def finish() -> dict[str, bytes]:
        refuse_changed(prepared.stamps)
        return recording.files(target) if recording else {}

    program = prepared.compiled.program
    with recording or nullcontext():
        write_checkpoint(
            target,
            prepared.shards,
            payloads(program.outputs, device, fitted),
            side_files(prepared, target),
            force=force,
            progress=recording.watching(progress) if recording else progress,
            protected=protected,
            threads=threads,
            seen=recording.seen if recording else None,
            finish=finish,
        )
        return Written(
            target,
            prepared.layers,
            program.parameters,
            program.size,
            tuple(shard.name for shard in prepared.shards),
            recording.lock(prepared.declared) if recording else None,
            fitted.bridges if fitted else {},
        )


def _refuse_target(prepared: Prepared, target: Path, *, force: bool) -> set[Path]:
    """Raise CheckpointError for a place that can't be written; the sources, which must stay."""
    opened = [model.checkpoint for model in prepared.models.values()]
    protected = {checkpoint.folder for checkpoint in opened}
    read = [file for checkpoint in opened for file in checkpoint.files]
    protected |= {file if is_gguf(file) else file.parent for file in read}
    remove_stale(located(target))
    check_target(target, force=force, protected=protected)
    if (free := free_space(target)) < prepared.size:
        message = f"the output takes {prepared.size:,} bytes, and {free:,} are free there"
        raise CheckpointError("C305", message, target)
    return protected
