"""Quality over size: how large a search's plans are, and the best plan of each size."""

from collections.abc import Mapping
from typing import final

import numpy as np

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.models import Opened
from gptailor.plan.plan import Plan
from gptailor.plan.stage import at_stage
from gptailor.program.compile import compile_plan
from gptailor.program.size import compiled_size
from gptailor.program.sources import Checked
from gptailor.report.summary import OutputSize
from gptailor.search.run.trials import Ledger, Trial
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space


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

    @property
    def known(self) -> Mapping[str, OutputSize]:
        """Those that were worked out, by the plans' digests."""
        return self._known

    def of_plan(self, plan: Plan) -> OutputSize:
        """That of a closed plan; bridges and healing change none of it."""
        layout = self.models["base"].layout
        compiled = compile_plan(Checked.of(at_stage(plan, "bare"), self.models))
        size = compiled_size(compiled, layout)
        cache = None if isinstance(size.kv_cache, Refusal) else size.kv_cache
        return OutputSize(size.parameters, size.bytes, cache, len(compiled.program.layers))


def curve(ledger: Ledger, sizes: Sizes) -> list[tuple[Trial, OutputSize]]:
    """The best plan of each size, the smallest first, without those that a smaller one betters.

    The plans are those that are handed over: evaluated on all samples, and bridged or healed where
    the best ones are.
    """
    by_size: dict[OutputSize, list[Trial]] = {}
    for trial in ledger.candidates():
        by_size.setdefault(sizes.of(trial), []).append(trial)
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
    return float(np.mean(ledger.losses([trial])[0, list(ledger.judging)]))


def lost_share(ledger: Ledger, trial: Trial) -> float | None:
    """The share of the base's scores that is lost, on the mean of the objectives that aren't sizes.

    None where one has no share of the base's, as `kl` has none.
    """
    rows = [
        row for row in zip(ledger.losses([trial])[0], ledger.aims, strict=True) if not row[1].size
    ]
    if any(aim.scale != "base" for _, aim in rows) or trial.values is None:
        return None
    return float(np.mean([loss for loss, _ in rows]))


def lost_units(ledger: Ledger, trial: Trial) -> float | None:
    """The mean of what is lost in the objectives' own unit; None where they have no one unit."""
    base = ledger.references.get(trial.samples)
    if trial.values is None or base is None:
        return None
    rows = [row for row in zip(ledger.aims, trial.values, base, strict=True) if not row[0].size]
    if len({aim.unit for aim, _, _ in rows}) != 1 or rows[0][0].unit in ("", "accuracy"):
        return None
    return float(np.mean([(v - b) * (1 if a.direction == "minimize" else -1) for a, v, b in rows]))
