"""Quality over size: how large a search's plans are, and the best plan of each size."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import place_in
from gptailor.checkpoint.models import Opened
from gptailor.plan.plan import Plan
from gptailor.plan.stage import at_stage
from gptailor.program.compile import compile_plan
from gptailor.program.size import compiled_size
from gptailor.search.run.trials import Ledger, Trial
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space


@final
class OutputSize(NamedTuple):
    """How large a plan's output is; `kv_cache` is None where that isn't known."""

    parameters: int
    bytes: int
    kv_cache: int | None
    layers: int


@final
class Sizes:
    """The sizes of a search's plans, from headers; each plan's once."""

    def __init__(self, space: Space, models: Mapping[str, Opened]) -> None:
        self.space = space
        self.models = models
        self._known: dict[str, OutputSize] = {}

    def of(self, trial: Trial) -> OutputSize:
        """That of a trial's plan."""
        if trial.plan not in self._known:
            self._known[trial.plan] = self.of_plan(decode(self.space, trial.request.genome))
        return self._known[trial.plan]

    def of_plan(self, plan: Plan) -> OutputSize:
        """That of a closed plan; bridges and healing change none of it."""
        layout = self.models["base"].layout
        compiled = compile_plan(at_stage(plan, "bare"), self.models)
        names = (output.spec.name for output in compiled.program.outputs)
        places = (place_in(layout.prefix, name) for name in names)
        layers = len({place[0] for place in places if place is not None})
        size = compiled_size(compiled, layout)
        cache = None if isinstance(size.kv_cache, Refusal) else size.kv_cache
        return OutputSize(size.parameters, size.bytes, cache, layers)


def curve(ledger: Ledger, sizes: Sizes) -> list[tuple[Trial, OutputSize]]:
    """The best plan of each size, the smallest first, without those that a smaller one betters.

    The plans are those that are handed over: evaluated on all samples, and bridged or healed where
    the best ones are. Nothing where all plans are of one size.
    """
    by_size: dict[OutputSize, list[Trial]] = {}
    for trial in ledger.candidates():
        by_size.setdefault(sizes.of(trial), []).append(trial)
    if len(by_size) < 2:
        return []
    found: list[tuple[Trial, OutputSize]] = []
    least = np.inf
    for size in sorted(by_size, key=lambda one: (one.parameters, one.layers)):
        best = ledger.best(by_size[size])
        if best is not None and (loss := quality(ledger, best)) < least:
            least = loss
            found.append((best, size))
    return found


def quality(ledger: Ledger, trial: Trial) -> float:
    """What a plan loses: by the preferred objective, or on the mean of all that aren't sizes."""
    losses = ledger.losses([trial])[0]
    if ledger.prefer is not None:
        return float(losses[ledger.prefer])
    return float(
        np.mean([loss for loss, aim in zip(losses, ledger.aims, strict=True) if not aim.size])
    )


def size_row(row: Mapping[str, Any], size: OutputSize, file: str, loss: float) -> dict[str, Any]:
    """A place on the curve as a summary has it; `loss` is the mean over the objectives."""
    return {**row, **size._asdict(), "file": file, "loss": loss}


# ----------------------------------------------------------------------------------------- picking


@final
class Bounds(NamedTuple):
    """What a plan that is picked keeps to; `memory` are bytes, for the weights and one text."""

    parameters: int | None = None
    memory: int | None = None
    context: int = 0
    layers: int | None = None
    loss: float | None = None
    nats: float | None = None

    def excess(self, row: Mapping[str, Any]) -> float:
        """How far a place on the curve is from keeping to it, in shares of a bound; else 0."""
        found = [0.0]
        for most, has in (
            (self.parameters, row["parameters"]),
            (self.memory, memory(row, self.context)),
            (self.layers, row["layers"]),
            (self.loss, row["loss"]),
            (self.nats, row["nats"]),
        ):
            if most is not None:
                over = np.inf if has is None else (has - most) / (abs(most) or 1.0)
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
