"""The choice of the plans that are bridged, or bridged and healed, in the end."""

from collections.abc import Callable, Sequence

from gptailor.searching.run.origin import BridgedCut, RivalPlan, of_best_recipe
from gptailor.searching.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial


def chosen_finalists(
    ledger: Ledger, many: int, distinct: Callable[[Sequence[Trial]], list[Trial]]
) -> list[Trial]:
    """Return this many of the best trials, or one more; no two with plans that are alike.

    `distinct` decides which plans are alike. The plan that is found is compared with starting plans
    that were repaired like it. So the best starting plan and the best other plan are among the
    finalists, or come on top. So do all rivals.
    """
    starts = usual_plans(ledger)
    rivals = {t.plan: t for t in ledger.of(STARTS) if isinstance(t.request.origin, RivalPlan)}
    full = (
        t
        for t in ledger.of(STARTS, RANDOM, SEARCH)
        if t.full and t.same_as is None and not isinstance(t.request.origin, RivalPlan)
    )
    ranked = ledger.ranked(full, len(ledger.trials))
    unique = distinct(sorted(ranked, key=lambda trial: trial.plan not in starts))
    cuts = [trial for trial in unique if isinstance(trial.request.origin, BridgedCut)]
    best = _with_cut(ledger, _best(ledger, unique, many), cuts, many)
    if len(best) <= many:
        usual = any(trial.plan in starts and trial not in cuts for trial in best)
        if not usual or all(trial.plan in starts for trial in best):
            missing = (t for t in unique if (t.plan in starts) != usual and t not in best)
            best += ledger.ranked(missing, 1)
    plans = {trial.plan for trial in best}
    return [*best, *(trial for plan, trial in rivals.items() if plan not in plans)]


def usual_plans(ledger: Ledger) -> set[str]:
    """Return the digests of the starting plans that a person would write without a search."""
    return {t.plan for t in ledger.of(STARTS) if not of_best_recipe(t.request.origin)}


def _best(ledger: Ledger, trials: Sequence[Trial], many: int) -> list[Trial]:
    """Return the best of each size, from end to end, then the other plans, best first."""
    if many == 1:
        return ledger.ranked(trials, many)
    of_size: dict[float, list[Trial]] = {}
    for trial in trials:
        of_size.setdefault(_size_of(ledger, trial), []).append(trial)
    chosen = [trial for _, of in sorted(of_size.items()) for trial in ledger.ranked(of, 1)]
    if len(chosen) > many:
        chosen = [chosen[i * (len(chosen) - 1) // (many - 1)] for i in range(many)]
    unchosen = [trial for trial in trials if trial not in chosen]
    return chosen + ledger.ranked(unchosen, many - len(chosen))


def _with_cut(ledger: Ledger, best: list[Trial], cuts: Sequence[Trial], many: int) -> list[Trial]:
    """Return the best with the best cut for bridges in place of the last one of its size.

    Before it is bridged such a cut may look worse than others.
    """
    if not cuts or many == 1 or not set(best).isdisjoint(cuts):
        return best
    ranks = {c: c.request.origin.rank for c in cuts if isinstance(c.request.origin, BridgedCut)}
    cut = min(cuts, key=ranks.__getitem__)
    of_size = [t for t in best if _size_of(ledger, t) == _size_of(ledger, cut)]
    return [cut if trial in of_size[-1:] else trial for trial in best]


def _size_of(ledger: Ledger, trial: Trial) -> float:
    """Return a plan's size by the first objective that is a size; 0 for all plans without one."""
    values = zip(ledger.aims, trial.values or (), strict=False)
    return next((value for aim, value in values if aim.size), 0.0)
