"""Which plans are bridged, or bridged and healed, in the end: `chosen_finalists`."""

from collections.abc import Callable, Sequence

from gptailor.search.run.origin import BridgedCut
from gptailor.search.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial


def chosen_finalists(
    ledger: Ledger, many: int, distinct: Callable[[Sequence[Trial]], list[Trial]]
) -> list[Trial]:
    """So many of the best trials, or one more; no two whose plans are alike, as `distinct` has it.

    What is found is compared with starting plans that were repaired as it was: the best of these,
    and the best of the others, is among them or comes on top.
    """
    starts = {trial.plan for trial in ledger.of(STARTS)}
    found = (t for t in ledger.of(STARTS, RANDOM, SEARCH) if t.full and t.same_as is None)
    ranked = ledger.ranked(found, len(ledger.trials))
    whole = distinct(sorted(ranked, key=lambda trial: trial.plan not in starts))
    cuts = [trial for trial in whole if isinstance(trial.request.origin, BridgedCut)]
    best = _with_cut(ledger, _best(ledger, whole, many), cuts, many)
    if len(best) <= many:
        usual = any(trial.plan in starts and trial not in cuts for trial in best)
        if not usual or all(trial.plan in starts for trial in best):
            others = (t for t in whole if (t.plan in starts) != usual and t not in best)
            best += ledger.ranked(others, 1)
    return best


def _best(ledger: Ledger, whole: Sequence[Trial], many: int) -> list[Trial]:
    """The best; where size is an objective the best of its size, of sizes from end to end."""
    if _size(ledger) is None or many == 1:
        return ledger.ranked(whole, many)
    of_size: dict[float, list[Trial]] = {}
    for trial in whole:
        of_size.setdefault(_size_of(ledger, trial), []).append(trial)
    found = [one for _, of in sorted(of_size.items()) for one in ledger.ranked(of, 1)]
    if len(found) > many:
        found = [found[i * (len(found) - 1) // (many - 1)] for i in range(many)]
    left = [trial for trial in whole if trial not in found]
    return found + ledger.ranked(left, many - len(found))


def _with_cut(ledger: Ledger, best: list[Trial], cuts: Sequence[Trial], many: int) -> list[Trial]:
    """The best with the best cut for bridges in the place of the last one, or of one of its size.

    Before it is bridged such a cut may look worse than others.
    """
    if not cuts or many == 1 or not set(best).isdisjoint(cuts):
        return best
    cut = min(cuts, key=_rank)
    if _size(ledger) is None:
        return [*best[: max(1, len(best) - 1)], cut]
    of_size = [t for t in best if _size_of(ledger, t) == _size_of(ledger, cut)]
    return [cut if trial in of_size[-1:] else trial for trial in best]


def _rank(cut: Trial) -> int:
    assert isinstance(cut.request.origin, BridgedCut)
    return cut.request.origin.rank


def _size(ledger: Ledger) -> int | None:
    """The number of the first objective that is a size."""
    return next((n for n, aim in enumerate(ledger.aims) if aim.size), None)


def _size_of(ledger: Ledger, trial: Trial) -> float:
    number = _size(ledger)
    assert number is not None
    assert trial.values is not None, "ranked trials have values"
    return trial.values[number]
