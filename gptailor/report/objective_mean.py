"""The mean over a search's objectives, where they have one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def mean_of_objectives(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The summary as if the mean of its objectives were the only one; None where they have none.

    They have one where all are in one unit and better in one direction, each with equal weight.
    """
    numbers = said["verdict"]["numbers"] if said["verdict"] is not None else []
    aims = [said["objectives"][i] for i in numbers]
    alike = {(aim["direction"], aim["unit"], aim["scale"]) for aim in aims}
    if len(aims) < 2 or len(alike) > 1 or aims[0]["unit"] == "":
        return None

    def mean(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [math.fsum(values[i] for i in numbers) / len(numbers)]

    def error(values: Sequence[float | None] | None) -> list[float | None] | None:
        known = [math.inf if (one := values[i]) is None else one for i in numbers] if values else []
        size = math.hypot(*known) / len(numbers)
        return [size if math.isfinite(size) else None] if known else None

    def of(row: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if row is None:
            return None
        here = {"values": mean(row["values"]), "stderrs": error(row.get("stderrs"))}
        held = row["held"]
        if held and "values" in held:
            held = {"values": mean(held["values"]), "stderrs": error(held["stderrs"])}
        return {**row, **here, "held": held}

    rows = {name: of(said[name]) for name in ("base", "best", "found")}
    drawn = {**said["random"], "best": of(said["random"]["best"])}
    name = f"mean of {len(numbers)} objectives"
    return {**said, **rows, "random": drawn, "starts": [of(row) for row in said["starts"]],
            "objectives": [{**aims[0], "name": name}]}  # fmt: skip
