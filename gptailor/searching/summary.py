"""The result of a search's trials: the verdict on the found plan, the curve, the starts.

All is computed from the ledger and the notes, so that RUN need not keep it. Plans are compared
sample by sample, on text that the search never saw where there is some. A plan is better than the
starting plans if it is by more than two standard errors. If it isn't, the simplest plan within one
standard error of the best one is handed over. A simpler plan isn't preferred if its recipe lost
with nothing dropped: repair removes most of a cut's loss, and nothing of the recipe's loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist, correlation, fmean, linear_regression, stdev
from typing import NamedTuple, final

from gptailor.lang.format import format_plan
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.stage import STAGES
from gptailor.reporting.measure import Estimate
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.finalists import usual_plans
from gptailor.searching.run.scores import Comparison, Scores
from gptailor.searching.run.trials import FINAL, RANDOM, RECIPES, STARTS, Ledger, Trial
from gptailor.searching.run.workers import BASE
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active

ENOUGH = 12
"""The fewest random plans for an estimate of the best of more plans."""


MOST_STARTS = 8
"""The most starting plans that the found plan is compared with: the best ones."""


def held_key(trial: Trial | None) -> str:
    """Return the key of a trial's plan as it was evaluated, or of the base."""
    if trial is None:
        return BASE
    stage = trial.request.stage
    return trial.plan if stage == "bare" else f"{trial.plan} {stage}"


# -------------------------------------------------------------------------------- the best plan


@final
class Verdict(NamedTuple):
    """The verdict on a search's result: `found` has the best score, `best` is handed over.

    `rival` is the starting plan with the smallest `gain` of the found plan over it, of `starts`
    starting plans. It may be the found plan itself. With `larger` the size of plans counts, and
    each of these starting plans is larger than the found plan. `base` is the gain over the uncut
    base, which may be `no_larger`. Gains are by the `deciding` objectives, on `held`-out samples
    where all plans have them.
    """

    found: Trial
    best: Trial
    rival: Trial | None
    gain: Estimate | None
    starts: int
    larger: bool
    held: bool
    base: Estimate | None
    no_larger: bool


def rivals(ledger: Ledger, top: Trial, size: Callable[[Trial], float]) -> list[Trial]:
    """Return the best starting plans, evaluated like the plan that was found, best first.

    Where size is an objective, they are no larger than the plan that was found, unless all are
    larger: to be better than a larger plan is the stronger result.
    """
    plans = usual_plans(ledger)
    most = size(top) if any(aim.size for aim in ledger.aims) else math.inf
    alike = [t for t in ledger.candidates() if t.plan in plans]
    no_larger = [t for t in alike if size(t) <= most]
    return ledger.ranked(no_larger or alike, MOST_STARTS)


def verdict(  # noqa: PLR0913 (all that it depends on)
    ledger: Ledger,
    measure: Comparison,
    scores: Callable[[Trial | None], Scores | None],
    plan_of: Callable[[Trial], Plan],
    size: Callable[[Trial], float],
    base_size: float,
    *,
    held: bool,
    uncut: Callable[[Trial], Scores | None],
) -> Verdict | None:
    """Return the verdict on the best trial; None if no plan has a score.

    `scores` returns the deciding scores of a trial or of the base (None). `size` returns the size
    of a trial's plan; `base_size` is the base's. `uncut` returns the scores of a trial's recipe
    with nothing dropped, or None if they aren't known.
    """
    if (top := ledger.best()) is None:
        return None
    of_top = scores(top)
    scored = {trial: s for trial in rivals(ledger, top, size) if (s := scores(trial)) is not None}
    of_base = scores(None)
    base = None if of_top is None or of_base is None else measure.gain(of_top, of_base)
    larger = any(aim.size for aim in ledger.aims) and any(size(t) > size(top) for t in scored)
    best, rival, gain = top, None, None
    if of_top is not None and scored:
        gains = {trial: measure.gain(of_top, s) for trial, s in scored.items()}
        itself = (top, Estimate(0.0, 0.0))
        rival, gain = itself if top in scored else min(gains.items(), key=_strength)
        if not (gain.sure or larger):
            best = _simplest(measure, {top: of_top} | scored, plan_of, size, uncut)
    no_larger = base_size <= size(top)
    return Verdict(top, best, rival, gain, len(scored), larger, held, base, no_larger)


def _strength(rival: tuple[Trial, Estimate]) -> tuple[bool, bool, float]:
    """Return a key of a rival by the gain over it: first rivals that surely beat the found plan."""
    gain = rival[1]
    return gain.sure, not gain.reversed.sure, gain.value


def _simplest(
    measure: Comparison,
    among: Mapping[Trial, Scores],
    plan_of: Callable[[Trial], Plan],
    size: Callable[[Trial], float],
    uncut: Callable[[Trial], Scores | None],
) -> Trial:
    """Return the simplest plan within one standard error of the best one.

    This is the one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984),
    with paired errors. A plan is left out if another of these surely beats it, or if its recipe
    lost to the best one's.
    """
    some = next(iter(among.values()))
    leader = max(among, key=lambda trial: measure.gain(among[trial], some).value)
    behind = {trial: measure.gain(among[leader], s) for trial, s in among.items()}
    alike = [trial for trial, gain in behind.items() if gain.value <= gain.stderr]
    best_recipe = uncut(leader)
    kept = [
        trial
        for trial in alike
        if not any(measure.gain(among[other], among[trial]).sure for other in alike)
        and not _recipe_lost(measure, best_recipe, uncut(trial))
    ]
    return min(
        kept or [leader],  # plans on unlike samples may beat each other in a circle
        key=lambda t: (size(t), *_simplicity(plan_of(t)), behind[t].value, t.number),
    )


def _recipe_lost(measure: Comparison, found: Scores | None, other: Scores | None) -> bool:
    """Return whether another recipe is behind the best plan's by more than a standard error.

    A recipe that was never scored lost too.
    """
    if found is None:
        return False
    if other is None:
        return True
    behind = measure.gain(found, other)
    return behind.value > behind.stderr


def _simplicity(plan: Plan) -> tuple[int, int]:
    """Return a sort key: a simpler plan names fewer models, then has fewer lines."""
    return len(plan.models), len(format_plan(plan).splitlines())


# ------------------------------------------------------------------------ the results of trials


def curve(ledger: Ledger, size: Callable[[Trial], OutputSize]) -> list[tuple[Trial, OutputSize]]:
    """Return the best plan of each size, smallest first, without plans that a smaller plan beats.

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
"""The fewest finalists that show the relation of losses before and after repair."""


@final
class RepairWorth(NamedTuple):
    """The finalists' losses before repair, compared with their losses after it.

    `slope` is the loss after repair for a loss of 1 before it, by least squares over this many
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
