"""Comparison of the plan that was found with the best plan that needs no search: `verdict`.

Plans are compared sample by sample, on text that the search never saw where there is some. A plan
is better than the starting plans if it is by more than two standard errors. If it isn't, the
simplest plan within one standard error of the best one is handed over. A simpler plan whose recipe
lost with nothing dropped isn't preferred: repair removes most of a cut's loss, and none of the
recipe's.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, final

from gptailor.lang.format import format_plan
from gptailor.plan.plan import Plan
from gptailor.reporting.measure import Estimate
from gptailor.searching.run.finalists import usual_plans
from gptailor.searching.run.scores import Comparison, Scores
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run.workers import BASE

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
    starting plans. It may be the found plan itself. `base` is the gain over the uncut base, which
    may be `no_larger`. Gains are by the `deciding` objectives, on `held`-out samples where all
    plans have them.
    """

    found: Trial
    best: Trial
    rival: Trial | None
    gain: Estimate | None
    starts: int
    held: bool
    base: Estimate | None
    no_larger: bool


def rivals(ledger: Ledger, top: Trial, size: Callable[[Trial], float]) -> list[Trial]:
    """Return the best starting plans, evaluated like the plan that was found, best first.

    Where size is an objective, they are no larger than the plan that was found.
    """
    plans = usual_plans(ledger)
    sized = any(aim.size for aim in ledger.aims)
    most = size(top) if sized else math.inf
    alike = [t for t in ledger.candidates() if t.plan in plans and size(t) <= most]
    return ledger.ranked(alike, MOST_STARTS)


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
    best, rival, gain = top, None, None
    if of_top is not None and scored:
        gains = {trial: measure.gain(of_top, s) for trial, s in scored.items()}
        itself = (top, Estimate(0.0, 0.0))
        rival, gain = itself if top in scored else min(gains.items(), key=_strength)
        if not gain.sure:
            best = _simplest(measure, {top: of_top} | scored, plan_of, size, uncut)
    no_larger = base_size <= size(top)
    return Verdict(top, best, rival, gain, len(scored), held, base, no_larger)


def _strength(rival: tuple[Trial, Estimate]) -> tuple[bool, bool, float]:
    """Return a key of a rival by the gain over it: first what surely beats the found plan."""
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
    with paired errors. A plan that another of these surely beats is left out, and so is one whose
    recipe lost to the best one's.
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
        kept,
        key=lambda t: (size(t), *simplicity(plan_of(t)), behind[t].value, t.number),
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


def simplicity(plan: Plan) -> tuple[int, int]:
    """Return a sort key: a simpler plan names fewer models, then has fewer lines."""
    return len(plan.models), len(format_plan(plan).splitlines())
