"""One plan of a search, by its size or its loss: `pick`. No torch, JAX or NumPy is imported."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, final

from pydantic import BaseModel, ValidationError

from gptailor.checkpoint.files import CheckpointError, fault_of
from gptailor.checkpoint.formats.gguf.kinds import quantised_kind
from gptailor.checkpoint.write.output_file import refuse_output, write_whole
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.output.lock import SUFFIX, read_lock
from gptailor.output.output import used_plan
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.reporting.measure import excess
from gptailor.reporting.quantities import bytes_from_words
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.journal import JOURNAL, complete_lines, damaged
from gptailor.searching.run.records import CurvePoint, HandedNote
from gptailor.searching.run_files import RunFiles, path_inside
from gptailor.searching.settings import WishError

BEST = "best.tailor"
"""The best plan's file in a search's folder."""
_WRITTEN_ANEW = "run the same search command again; it writes the file without further trials"


@final
class _HandedLine(BaseModel):
    """A line of the journal; only one note of it is read."""

    handed: HandedNote | None = None


@final
class Bounds(NamedTuple):
    """Bounds of a plan to pick.

    `memory` are bytes for the weights, and for the KV cache of one text of `context` tokens if it
    is known. `share` and `nats` bound the loss compared with the base, on the mean of the
    objectives. `gguf` are types of GGUF files, each with the most bytes of the plan's file.
    """

    parameters: int | None = None
    memory: int | None = None
    context: int = 0
    layers: int | None = None
    share: float | None = None
    nats: float | None = None
    gguf: tuple[tuple[str, int], ...] = ()

    def excess(self, point: CurvePoint, files: Sequence[int] = ()) -> float:
        """Return how far a plan is beyond these bounds, in shares of a bound; else 0.

        `files` are the bytes of its GGUF files, in the order of `gguf`.
        """
        size = point.size
        pairs = (
            (self.parameters, size.parameters),
            (self.memory, size.bytes + self.context * (size.kv_cache or 0)),
            (self.layers, size.layers),
            (self.share, point.share),
            (self.nats, point.nats),
            *zip((most for _, most in self.gguf), files, strict=True),
        )
        return max([0.0, *(excess("<=", has, most) for most, has in pairs if most is not None)])


def file_bound(kind: str, most: int | str) -> tuple[str, int]:
    """Return a type of GGUF files and their most bytes, as `Bounds` has them. Raises ValueError."""
    return quantised_kind(kind) or "", bytes_from_words(str(most))


def picked(
    curve: Sequence[CurvePoint], bounds: Bounds, files: Sequence[Sequence[int]] = ()
) -> tuple[CurvePoint, bool]:
    """Return the best plan of the curve that keeps to the bounds, or the nearest and False.

    Where only the loss is bounded it is the smallest that keeps to it. `files` are the bytes of
    each plan's GGUF files, in the order of the bounds' `gguf`.
    """
    beyond = [*map(bounds.excess, curve, files or [()] * len(curve))]
    kept = [point for point, excess in zip(curve, beyond, strict=True) if excess <= 0]
    if not kept:
        return curve[beyond.index(min(beyond))], False
    if (bounds.parameters, bounds.memory, bounds.layers, bounds.gguf) == (None, None, None, ()):
        return min(kept, key=lambda point: point.size.parameters), True
    return min(kept, key=lambda point: (point.lost, point.size.parameters)), True


@final
class PickedPlan(NamedTuple):
    """A plan of a search's curve of quality over size, and its text.

    With `kept` it keeps to the bounds, else it only comes nearest. `lock` is the file of the
    search's lock of this plan, if there is one. `files` are the bytes of its GGUF files of the
    bounds' types.
    """

    point: CurvePoint
    kept: bool
    text: str
    lock: Path | None
    files: Sequence[int] = ()


def pick(run: str | Path, bounds: Bounds, place: Path | None) -> PickedPlan:
    """Return the best plan of a search's folder that keeps to bounds, or the nearest one.

    Paths in its text are as seen from the folder `place`, or absolute. Raises CheckpointError C903
    for a folder without a search's results, PlanError for a damaged plan. With `bounds.gguf` it
    also raises CheckpointError (C306) for a plan that isn't written as GGUF.
    """
    files = RunFiles(run)
    handed = _handed(files)
    if handed is None or not handed.curve:
        help_ = "run the same search command again, which writes them at its end"
        raise files.error("has no plans of a search yet", help_)
    if handed.best is None:
        message = "no plan of this search meets the requirements"
        raise WishError(f"{message}; summary.md names the nearest plan")
    for name, most in (("share", bounds.share), ("nats", bounds.nats)):
        if most is not None and all(getattr(point, name) is None for point in handed.curve):
            other = "in their own unit, such as 0.05" if name == "share" else "in %, such as 2%"
            message = "the objectives of this search have no loss in this unit"
            raise WishError(f"{message}; give --loss {other}")
    kinds = [kind for kind, _ in bounds.gguf]
    measured = handed.curve if kinds else ()  # only then all plans are read
    sizes = {each.trial: _gguf_sizes(_plan_at(files, each)[1], kinds) for each in measured}
    point, kept = picked(handed.curve, bounds, [*sizes.values()])
    text, plan = _plan_at(files, point)
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))
    moved = "".join(comment) + format_plan(seen_from(plan, place))
    if any(escaped_control(line) != line for line in moved.split("\n")):
        message = "expected text without control characters"
        raise CheckpointError("C903", message, files.path / point.file, _WRITTEN_ANEW)
    best = handed.best == point.trial
    lock = path_inside(files.path, BEST + SUFFIX) if best and files.storage is None else None
    known = lock if lock is not None and lock.exists() else None
    return PickedPlan(point, kept, moved, known, sizes.get(point.trial, ()))


def _plan_at(files: RunFiles, point: CurvePoint) -> tuple[str, Plan]:
    """Return the text of a plan of the curve, and the plan."""
    name = point.file
    raw = files.read(name)
    if raw is None:
        raise files.error(f"lacks '{name}', which its journal names", _WRITTEN_ANEW)
    text = raw.decode(errors="surrogateescape")  # `loads` refuses such a text
    file = files.path / name
    return text, loads(text, folder="." if files.storage else file.parent, name=str(file))


def _gguf_sizes(plan: Plan, kinds: Sequence[str]) -> list[int]:
    """Return the bytes of a plan's GGUF files of some types, from headers."""
    from gptailor.evaluation.gguf_contents import gguf_size  # imports transformers

    prepared = prepare(plan)
    return [gguf_size(prepared.checked, prepared.compiled, kind) for kind in kinds]


def _handed(files: RunFiles) -> HandedNote | None:
    """Return the last note of the plans that the search handed over, without reading its trials."""
    lines = complete_lines(files.journal())
    end = len(lines)
    while end:
        start = lines.rfind(b"\n", 0, end - 1) + 1
        try:
            line = _HandedLine.model_validate_json(lines[start : end - 1])
        except ValidationError as error:
            number = lines.count(b"\n", 0, start) + 1
            raise damaged(number, fault_of(error), files.path / JOURNAL) from None
        if line.handed is not None:
            return line.handed
        end = start
    return None


def put_picked(plan: PickedPlan, file: Path, *, force: bool = False) -> None:
    """Write the plan that was picked, and its lock if the search locked it.

    The lock has the search's digests: nothing is computed again. `force` replaces an older file.
    Raises CheckpointError for a file that exists (C301) or can't be written, and for a lock that
    can't be read or written.
    """
    refuse_output(file, force=force)
    write_whole(file, plan.text.encode(), file)
    if plan.lock is not None:
        lock = read_lock(plan.lock).with_sources(load(file).models)
        lock.write(file.with_name(file.name + SUFFIX))


def seen_from(plan: Plan, place: Path | None) -> Plan:
    """Return the plan with its paths as seen from a folder, or absolute."""
    used = used_plan(prepare(plan), place)
    moved = ("models", *plan.text_fits, "bridges", "heal", "chat_template", "expects", "gguf")
    paths = {name: getattr(used, name) for name in moved}
    return plan.model_copy(update=paths)


def lock_beside(plan: Path) -> None:
    """Write the lock of a plan's file beside it: of all that it reads and each tensor it makes."""
    from gptailor.output.compile import lock  # imports torch

    try:
        lock(load(plan)).write(plan.with_name(plan.name + SUFFIX))
    except CheckpointError as error:
        if error.code == "C303":
            raise
        message = f"the best plan can't be locked: {error.message}"
        raise CheckpointError(error.code, message, error.path, error.help) from error
