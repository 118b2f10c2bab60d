"""One plan of a search, by its size or what it loses: `pick`. Neither torch nor JAX is imported."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, final

from gptailor.build.lock import SUFFIX
from gptailor.build.output import used_plan
from gptailor.checkpoint.files import CheckpointError, read_object
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.search.object_storage import ObjectStorage, local_or_url
from gptailor.search.settings import WishError

BEST = "best.tailor"
"""The best plan's file in a search's folder."""
SUMMARY = "summary"
"""What a search says in the end, as JSON and as a page."""


@final
class Bounds(NamedTuple):
    """What a plan that is picked keeps to.

    `memory` are bytes for the weights and the KV cache of one text of `context` tokens; `share` and
    `nats` what is lost beside the base at most, on the mean of the objectives.
    """

    parameters: int | None = None
    memory: int | None = None
    context: int = 0
    layers: int | None = None
    share: float | None = None
    nats: float | None = None

    def excess(self, row: Mapping[str, Any]) -> float:
        """How far a place on the curve is from keeping to it, in shares of a bound; else 0."""
        found = [0.0]
        for most, has in (
            (self.parameters, row["parameters"]),
            (self.memory, memory(row, self.context)),
            (self.layers, row["layers"]),
            (self.share, row["share"]),
            (self.nats, row["nats"]),
        ):
            if most is not None:
                over = math.inf if has is None else (has - most) / (abs(most) or 1.0)
                found.append(float(over))
        return max(found)


def memory(row: Mapping[str, Any], context: int) -> int:
    """Bytes of a plan's weights, and of the KV cache of one text where that is known."""
    return int(row["bytes"]) + context * int(row["kv_cache"] or 0)


def picked(
    rows: Sequence[Mapping[str, Any]], bounds: Bounds
) -> tuple[Mapping[str, Any], bool] | None:
    """The best place on the curve that keeps to the bounds, or else the nearest one and False.

    Where only the loss is bounded it is the smallest that keeps to it. None of no places.
    """
    if not rows:
        return None
    kept = [row for row in rows if bounds.excess(row) <= 0]
    if not kept:
        return min(rows, key=bounds.excess), False
    only_loss = bounds.parameters is None and bounds.memory is None and bounds.layers is None
    key = "parameters" if only_loss else "loss"
    return min(kept, key=lambda row: (row[key], row["parameters"])), True


@final
class PickedPlan(NamedTuple):
    """A place on a search's curve of quality over size, and its plan's text.

    `kept` is whether it keeps to the bounds, or only comes nearest. `locked` says that the search
    locked this plan.
    """

    row: Mapping[str, Any]
    kept: bool
    text: str
    locked: bool


def pick(run: str | Path, bounds: Bounds, place: Path) -> PickedPlan:
    """The best plan of a search's folder that keeps to bounds, or the nearest one.

    Paths in its text are as seen from the folder `place`. Raises CheckpointError C903 for what
    holds no result of a search, C201 for a plan that can't be read.
    """
    shown = local_or_url(run)
    storage = ObjectStorage(shown) if isinstance(shown, str) else None
    name = f"{SUMMARY}.json"
    if storage is not None and name not in storage.names():
        said = None
    elif storage is not None:
        said = json.loads(storage.get([name])[name])
    else:
        path = Path(shown) / name
        said = read_object(path, "C903", duplicate="C903") if path.exists() else None
    rows = [] if said is None else said.get("sizes", [])
    chosen = picked(rows, bounds)
    if said is None or chosen is None:
        help_ = "gptailor search writes it when it ends, or is interrupted"
        raise CheckpointError("C903", "holds no plans that a search found", Path(shown), help_)
    if said["best"] is None and said.get("required") is not None:
        message = "no plan of this search meets what is required, so there is none to pick"
        raise WishError(f"{message}; summary.md says which comes nearest")
    for name, most in (("share", bounds.share), ("nats", bounds.nats)):
        if most is not None and all(row[name] is None for row in rows):
            other = "in their own unit, such as 0.05" if name == "share" else "in %, such as 2%"
            message = f"the objectives of this search have no such loss: say --loss {other}"
            raise WishError(message)
    row, kept = chosen
    if storage is None:
        plan = load(Path(shown) / row["file"])
        text = (Path(shown) / row["file"]).read_text(encoding="utf-8")
    else:
        text = storage.get([row["file"]])[row["file"]].decode()
        plan = loads(text)
    comment = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    best = said["best"] is not None and said["best"]["trial"] == row["trial"]
    locked = best and storage is None and (Path(shown) / (BEST + SUFFIX)).exists()
    return PickedPlan(row, kept, comment + format_plan(seen_from(plan, place)), locked)


def put_picked(found: PickedPlan, file: Path) -> None:
    """Write the plan that was picked, and its lock if the search locked it.

    Raises FileExistsError for a file that is there, CheckpointError as `lock` does.
    """
    with file.open("x", encoding="utf-8") as written:
        written.write(found.text)
    if found.locked:
        lock_beside(file)


def seen_from(plan: Plan, place: Path | None) -> Plan:
    """The plan with its paths as seen from a folder, or whole."""
    used = used_plan(prepare(plan), place)
    paths = {name: getattr(used, name) for name in ("models", "bridges", "heal", "chat_template")}
    return plan.model_copy(update=paths)


def lock_beside(plan: Path) -> None:
    """Write the lock of a plan's file beside it: of all that it reads and each tensor it makes."""
    from gptailor.build.record import lock  # noqa: PLC0415 (imports torch)

    try:
        lock(load(plan)).write(plan.with_name(plan.name + SUFFIX))
    except CheckpointError as error:
        if error.code == "C303":
            raise
        message = f"the best plan can't be locked: {error.message}"
        raise CheckpointError(error.code, message, error.path, error.help) from error
