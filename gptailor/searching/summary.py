"""What a search's trials come to: the curve, the best starting plans, what they are compared with.

All is computed from the ledger, so that RUN need not keep it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import NormalDist, correlation, fmean, linear_regression, stdev
from typing import NamedTuple, final

from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import STAGES
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.finalists import usual_plans
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import FINAL, RANDOM, RECIPES, STARTS, Ledger, Trial
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active
from gptailor.searching.verdict import MOST_STARTS, rivals

ENOUGH = 12
"""The fewest random plans from which the best of more can be estimated."""


def aims_of(
    traits: Sequence[tuple[str, str, str]],
    objectives: Sequence[Objective],
    *,
    by_byte: bool = False,
) -> tuple[Aim, ...]:
    """Return a search's objectives with their units, and short labels that tell them apart."""
    names = [objective.name for objective in objectives]
    aims = []
    for (name, direction, scale), objective in zip(traits, objectives, strict=True):
        text = str(objective.arguments.get("file") or "")
        label = objective.name
        if names.count(objective.name) > 1:
            source = text or str(objective.arguments.get("task") or "")
            label = f"{objective.name} {Path(source).stem}".strip()
        spec, lines = OBJECTIVES[objective.name], map(escaped_control, (name, label, text))
        shown, label, text = lines
        unit = spec.byte_unit or spec.unit if by_byte else spec.unit
        fields = (shown, direction, scale, label, unit, spec.by != "samples", text)
        aims.append(Aim(*fields))  # type: ignore[arg-type] # as literals
    labels = [aim.label for aim in aims]
    return tuple(a._replace(label=a.name) if labels.count(a.label) > 1 else a for a in aims)


def curve(ledger: Ledger, size: Callable[[Trial], OutputSize]) -> list[tuple[Trial, OutputSize]]:
    """Return the best plan of each size, smallest first, but none that a smaller one betters.

    The plans may be handed over: they were evaluated on all samples, and bridged or healed where
    the best plans are.
    """
    by_size: dict[OutputSize, list[Trial]] = {}
    for trial in ledger.candidates():
        by_size.setdefault(size(trial), []).append(trial)
    points: list[tuple[Trial, OutputSize]] = []
    least = math.inf
    for each in sorted(by_size, key=lambda s: (s.parameters, s.layers)):
        best = ledger.best(by_size[each])
        lost = None if best is None else ledger.loss(best)
        if best is not None and lost is not None and lost.value < least:
            least = lost.value
            points.append((best, each))
    return points


def finalists(ledger: Ledger, size: Callable[[Trial], OutputSize]) -> list[Trial]:
    """Return a summary's trials: the best, random, starting plans, the front, each size's.

    The rivals of the best trial are among them, though other trials may be better.
    """
    top = ledger.best()
    alike = rivals(ledger, top, lambda trial: size(trial).parameters) if top else []
    chosen = (
        top,
        ledger.best(drawn_plans(ledger)),
        best_recipe(ledger),
        *best_starts(ledger),
        *alike,
        *ledger.front(),
        *(trial for trial, _ in curve(ledger, size)),
        *(trial for trial in ledger.of(FINAL) if trial.values is not None),
    )
    return [trial for trial in chosen if trial is not None]


_FEWEST_COMPARED = 3
"""The fewest finalists that show what a loss before repair is worth after it."""


@final
class RepairWorth(NamedTuple):
    """How the finalists' losses before they were repaired compare with those after it.

    `slope` is the loss after repair for a loss of 1 before it, by least squares over so many
    `plans`. `correlation` is their rank correlation (Spearman).
    """

    slope: float
    correlation: float
    plans: int


def repair_worth(ledger: Ledger) -> RepairWorth | None:
    """Compare the finalists' mean losses before and after repair; None for too few plans."""
    pairs = [(ledger.before(trial), trial) for trial in ledger.of(FINAL)]
    losses = [(ledger.mean_loss(a), ledger.mean_loss(b)) for a, b in pairs if a is not None]
    finite = [pair for pair in losses if all(map(math.isfinite, pair))]
    before, after = zip(*finite, strict=True) if finite else ((), ())
    if len(finite) < _FEWEST_COMPARED or min(len(set(before)), len(set(after))) == 1:
        return None
    ranks = [[sorted(each).index(loss) for loss in each] for each in (before, after)]
    return RepairWorth(
        slope=round(linear_regression(before, after).slope, 3),
        correlation=round(correlation(*ranks), 3),
        plans=len(finite),
    )


def best_recipe(ledger: Ledger) -> Trial | None:
    """Return the best recipe that was compared with nothing dropped; None without recipes."""
    return ledger.best([t for t in ledger.of(RECIPES) if t.full and t.same_as is None])


def best_starts(ledger: Ledger) -> list[Trial]:
    """Return starting plans at full fidelity, repaired ones first, then the best; each once."""
    plans = usual_plans(ledger)
    full = [
        trial
        for trial in ledger.of(STARTS, FINAL)
        if trial.full and trial.values and trial.same_as is None and trial.plan in plans
    ]
    stages = sorted({t.request.stage for t in full}, key=STAGES.index, reverse=True)
    alike = [[t for t in full if t.request.stage == stage] for stage in stages]
    return [t for of in alike for t in ledger.ranked(of, MOST_STARTS)][:MOST_STARTS]


def drawn_plans(ledger: Ledger) -> list[Trial]:
    """Return the random plans in the budget, each once."""
    return [t for t in ledger.of(RANDOM) if t.same_as is None]


def expected(ledger: Ledger, drawn: Sequence[Trial]) -> float | None:
    """Return the expected smallest loss of as many random plans as the search cost.

    It is a mean loss, in the ledger's `loss_unit`. It fits a normal law to the drawn plans: a cheap
    estimate, while random search itself would cost as much again.
    """
    scores = [lost.value for trial in drawn if (lost := ledger.loss(trial)) is not None]
    if len(scores) < ENOUGH:
        return None
    count = max(ledger.cost(), 1.0)
    quantile = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))  # Blom, 1958
    return fmean(scores) - quantile * stdev(scores)


def numbers_at_bounds(space: Space, trial: Trial) -> Iterator[tuple[str, float, str]]:
    """Yield the numbers of a trial's plan that are at the `low` or `high` end of their interval.

    A low end of 0 is left out: a model then has no share, and a wider interval would hardly help.
    """
    says = active(space.table, trial.request.genome).reals
    for real, share, counts in zip(space.reals, trial.request.genome.reals, says, strict=True):
        value = real.value(float(share))
        ends = (real.low, real.high) if real.low else (real.high,)
        if counts and real.low < real.high and value in ends:
            yield escaped_control(real.name), value, "low" if value == real.low else "high"
