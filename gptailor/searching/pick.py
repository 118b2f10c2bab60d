"""One plan of a search, by its size or its loss: `pick`. Neither torch nor JAX is imported."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, final

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.write.output_file import refuse_output, write_whole
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.output.lock import SUFFIX, read_lock
from gptailor.output.used_plan import used_plan
from gptailor.plan.plan import CUTS, Plan
from gptailor.prepare import prepare
from gptailor.reporting.measure import excess
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.records import SearchSummary, SizeRow, front_file
from gptailor.searching.run_files import SUMMARY, WRITTEN_ANEW, RunFiles, path_inside
from gptailor.searching.settings import WishError

BEST = "best.tailor"
"""The best plan's file in a search's folder."""


@final
class Bounds(NamedTuple):
    """Bounds of a plan to pick.

    `memory` are bytes for the weights, and for the KV cache of one text of `context` tokens if it
    is known. `share` and `nats` bound the loss beside the base, on the mean of the objectives.
    """

    parameters: int | None = None
    memory: int | None = None
    context: int = 0
    layers: int | None = None
    share: float | None = None
    nats: float | None = None

    def excess(self, row: SizeRow) -> float:
        """Return how far a row is beyond these bounds, in shares of a bound; else 0."""
        pairs = (
            (self.parameters, row.parameters),
            (self.memory, row.bytes + self.context * (row.kv_cache or 0)),
            (self.layers, row.layers),
            (self.share, row.share),
            (self.nats, row.nats),
        )
        return max([0.0, *(excess("<=", has, most) for most, has in pairs if most is not None)])


def picked(rows: Sequence[SizeRow], bounds: Bounds) -> tuple[SizeRow, bool] | None:
    """Return the best place on the curve that keeps to the bounds, or the nearest and False.

    Where only the loss is bounded it is the smallest that keeps to it. Return None without places.
    """
    if not rows:
        return None
    kept = [row for row in rows if bounds.excess(row) <= 0]
    if not kept:
        return min(rows, key=bounds.excess), False
    if bounds.parameters is None and bounds.memory is None and bounds.layers is None:
        return min(kept, key=lambda row: row.parameters), True
    return min(kept, key=lambda row: (row.lost, row.parameters)), True


@final
class PickedPlan(NamedTuple):
    """A place on a search's curve of quality over size, and its plan's text.

    With `kept` it keeps to the bounds, else it only comes nearest. `lock` is the file of the
    search's lock of this plan, if there is one.
    """

    row: SizeRow
    kept: bool
    text: str
    lock: Path | None


def pick(run: str | Path, bounds: Bounds, place: Path | None) -> PickedPlan:
    """Return the best plan of a search's folder that keeps to bounds, or the nearest one.

    Paths in its text are as seen from the folder `place`, or absolute. Raises CheckpointError C903
    for a folder without a search's results, PlanError for a damaged plan.
    """
    files = RunFiles(run)
    summary = files.record(SearchSummary, f"{SUMMARY}.json")
    rows = () if summary is None else summary.sizes
    chosen = picked(rows, bounds)
    if summary is None or chosen is None:
        help_ = "gptailor search writes it when it ends, or is interrupted"
        raise files.error("holds no plans that a search found", help_)
    if summary.best is None and summary.required is not None:
        message = "no plan of this search meets the requirements"
        raise WishError(f"{message}; summary.md says which comes nearest")
    for name, most in (("share", bounds.share), ("nats", bounds.nats)):
        if most is not None and all(getattr(row, name) is None for row in rows):
            other = "in their own unit, such as 0.05" if name == "share" else "in %, such as 2%"
            message = f"the objectives of this search have no such loss: say --loss {other}"
            raise WishError(message)
    row, kept = chosen
    name = front_file(row.trial)
    raw = files.read(name)
    if raw is None:
        raise files.error(f"holds no '{name}', which its summary names", WRITTEN_ANEW)
    text = raw.decode(errors="surrogateescape")  # `loads` refuses such a text
    file = files.path / name
    plan = loads(text, folder="." if files.storage else file.parent, name=str(file))
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))
    moved = "".join(comment) + format_plan(seen_from(plan, place))
    if any(escaped_control(line) != line for line in moved.split("\n")):
        message = "expected text, got a control character, which steers a terminal"
        raise CheckpointError("C903", message, file, WRITTEN_ANEW)
    best = summary.best is not None and summary.best.trial == row.trial
    lock = path_inside(files.path, BEST + SUFFIX) if best and files.storage is None else None
    return PickedPlan(row, kept, moved, lock if lock is not None and lock.exists() else None)


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
    moved = ("models", *CUTS, "bridges", "heal", "chat_template", "expects")
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
