"""The verbs of gptailor as functions: `load`, `check`, `compile`, `lock`, `verify`, `format`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gptailor.build.lock import Lock
from gptailor.build.output import fit_bridges, payloads, side_files
from gptailor.checkpoint.files import CheckpointError, refuse_changed
from gptailor.checkpoint.formats.gguf import is_gguf
from gptailor.checkpoint.write.writer import (
    check_target,
    free_space,
    located,
    remove_stale,
    write_checkpoint,
)
from gptailor.lang.format import format_plan, format_text
from gptailor.lang.parse import load, loads
from gptailor.plan.faults import PlanError, Source
from gptailor.plan.layers import Gap
from gptailor.plan.plan import Plan
from gptailor.prepare import SHARD_SIZE, ModelPaths, Prepared, check, prepare, ready

if TYPE_CHECKING:
    from gptailor.build.verify import Verified
    from gptailor.evaluate.bridge.fit import Fitted, FittedBridge

__all__ = [
    "Prepared",
    "Written",
    "check",
    "compile",
    "format",
    "load",
    "loads",
    "lock",
    "prepare",
    "ready",
    "verify",
]


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


def format(plan: Plan | str) -> str:
    """The canonical text of a plan, or of a text, whose comments stay.

    Raises PlanError where a text can't be read.
    """
    if isinstance(plan, Plan):
        return format_plan(plan)
    text, faults = format_text(Source("<text>", plan))
    if text is None:
        raise PlanError(faults)
    return text


def compile(  # noqa: PLR0913 (the verb of the command line, and its flags)
    plan: Plan,
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

    `models` gives other folders for the plan's names, `dtype` another dtype than the plan's;
    `force` replaces a folder that is there; `progress` is told of the bytes written. `locked` is a
    lock, or its file: what differs from it is refused, and models of the Hub are taken at its
    commits. `locking` makes a lock, which is in the folder and in what is given back. The work is
    done by `threads` threads, as many as there are cores without that; large merges by `device`,
    which may be `cuda`. Neither changes a byte, but for a bridge's rounding: bridges are fitted
    before anything is written, on `device`, with at most `memory` bytes of weights there at once.
    `bridging` is told of each gap when its turn comes.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails or differs from the lock.
    """
    held_to = None
    if locked is not None:
        from gptailor.build.record import at_locked_commits, lock_of  # noqa: PLC0415 (few compile so)

        held_to = lock_of(locked)
        plan = at_locked_commits(plan, held_to)
    return write(
        ready(plan, models=models, dtype=dtype, shard_size=shard_size),
        Path(output),
        force=force,
        progress=progress,
        locked=held_to,
        locking=locking,
        threads=threads,
        device=device,
        memory=memory,
        bridging=bridging,
    )


def write(  # noqa: PLR0913 (what compile hands on)
    prepared: Prepared,
    target: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
    locked: Lock | None = None,
    locking: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    memory: int | None = None,
    bridging: Callable[[Gap], None] = lambda _: None,
) -> Written:
    """Write what was prepared; the rest is as `compile` has it."""
    if device != "cpu":
        from gptailor.program.run import device_of  # noqa: PLC0415 (imports torch)

        device_of(device)
    protected = {model.checkpoint.folder for model in prepared.models.values()}
    files_read = [file for m in prepared.models.values() for file in m.checkpoint.files]
    protected |= {file if is_gguf(file) else file.parent for file in files_read}
    remove_stale(located(target))
    check_target(target, force=force, protected=protected)
    if (free := free_space(target)) < prepared.size:
        message = f"the output takes {prepared.size:,} bytes, and {free:,} are free there"
        raise CheckpointError("C305", message, target)
    if locked is not None:
        from gptailor.build.record import refuse_early  # noqa: PLC0415 (few compile so)

        refuse_early(prepared, locked)
    fitted = fit_bridges(prepared, device=device, memory=memory, told=bridging)
    put = partial(
        write_checkpoint,
        target,
        prepared.shards,
        payloads(prepared.compiled.program.outputs, device, fitted),
        side_files(prepared, target),
        force=force,
        protected=protected,
        threads=threads,
    )
    if locked is None and not locking:
        put(progress=progress, finish=partial(_unchanged, prepared))
        return _written(prepared, target, fitted)
    from gptailor.build.record import Recording  # noqa: PLC0415 (few compile so)

    with Recording(prepared, locked, fitted=fitted, threads=threads) as recording:
        watched = recording.watching(progress)
        put(
            progress=watched,
            seen=recording.seen,
            finish=lambda: _unchanged(prepared) | recording.files(target),
        )
        return replace(_written(prepared, target, fitted), lock=recording.lock(prepared.declared))


def _unchanged(prepared: Prepared) -> dict[str, bytes]:
    """No more files; refused where one that was read is another by now."""
    refuse_changed(prepared.stamps)
    return {}


def _written(prepared: Prepared, target: Path, fitted: "Fitted | None") -> Written:
    program = prepared.compiled.program
    names = tuple(shard.name for shard in prepared.shards)
    bridges = fitted.bridges if fitted is not None else {}
    return Written(
        target, prepared.layers, program.parameters, program.size, names, bridges=bridges
    )


# --------------------------------------------------------------------------------- lock and verify


def lock(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Lock:
    """The lock of a plan: digests of all that it reads, and of each tensor that it makes.

    Nothing is written; `Lock.write` does that. Raises as `compile`.
    """
    from gptailor.build.record import measured  # noqa: PLC0415 (few plans are locked)

    return measured(ready(plan, models=models, dtype=dtype), progress=progress)


def verify(
    folder: str | Path,
    *,
    models: ModelPaths | None = None,
    tensors_only: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> "Verified":
    """Whether a compiled folder is what its plan and its lock say; see `Verified`.

    `models` gives other folders for the plan's names; with `tensors_only` the folder is compared
    with its lock, and the models are not looked at. Raises CheckpointError if the folder is not
    there (C101) or its lock is none (C701, C702), PlanError if `models` has other names.
    """
    from gptailor.build.verify import begin, verified  # noqa: PLC0415 (few folders are verified)

    return verified(begin(Path(folder), models=models, tensors_only=tensors_only), progress)
