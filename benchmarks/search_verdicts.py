"""Verdicts and races of `benchmarks/search.py --table`: rules that compare plans by samples.

A verdict "better" is false if a starting plan has a lower loss on the held-out samples. Races use
trials that were scored on all samples, so the losses of trials that a rule gave up are known.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

import numpy as np

from benchmarks.search_table import Measured
from gptailor.evaluation.scores import PerSample, Race, paired_difference, race_counts
from gptailor.reporting.measure import Estimate
from gptailor.searching.space.genome import Genome
from gptailor.searching.summary import MOST_STARTS

# ----------------------------------------------------------------------------------------- verdicts

RULES: Final = (
    "lower loss on the search's samples",
    "two standard errors, the search's samples",
    "two standard errors, half of the held-out samples",
)


@dataclass(frozen=True)
class Judged:
    """The verdicts of all rules on the plan of a search, and the truth."""

    better: tuple[bool, ...]
    true: bool


def judged(landscape: Measured, found: Genome) -> Judged:
    """Compare a plan with the best starting plans, as a search does."""
    order = np.argsort(landscape.observed(landscape.starts), kind="stable")[:MOST_STARTS]
    starts = landscape.each(landscape.starts)[order]
    (plan,) = landscape.each(Genome(*(gene[None] for gene in found)))
    seen, held = landscape.searched, landscape.held
    return Judged(
        (
            plan[seen].mean() < starts[:, seen].mean(1).min() - 1e-9,
            _better(plan, starts, seen),
            _better(plan, starts, held[: len(held) // 2]),
        ),
        bool(plan[held].mean() < starts[:, held].mean(1).min()),
    )


def _better(plan: np.ndarray, starts: np.ndarray, samples: np.ndarray) -> bool:
    differences = [
        paired_difference(scored(start[samples]), scored(plan[samples])) for start in starts
    ]
    return all(Estimate(one.value, one.stderr).sure for one in differences)


def scored(losses: np.ndarray) -> PerSample:
    """Return a plan's score sample by sample."""
    return PerSample(tuple(map(float, losses)), (1,) * len(losses))


def verdict_rows(verdicts: Sequence[Judged]) -> Iterator[str]:
    """Return a line for each rule."""
    yield '| rule | searches | "better" | of these false | missed |'
    yield "|---|--:|--:|--:|--:|"
    for number, rule in enumerate(RULES):
        better = [one for one in verdicts if one.better[number]]
        false = sum(not one.true for one in better)
        missed = sum(one.true and not one.better[number] for one in verdicts)
        share = f"{false} ({false / len(better):.0%})" if better else "0"
        yield f"| {rule} | {len(verdicts)} | {len(better)} | {share} | {missed} |"


# -------------------------------------------------------------------------------------------- races


class Pruner(Protocol):
    """A rule for giving up trials."""

    def __call__(self, trial: np.ndarray, best: np.ndarray) -> int:
        """Return the number of samples after which a trial is given up, or all of them."""


def race(trial: np.ndarray, best: np.ndarray) -> int:
    """Apply gptailor's race."""
    rules = Race(((scored(best),),), (1.0,))
    for count in filter(None, race_counts(len(trial))):
        if rules.lost((scored(trial[:count]),)):
            return count
    return len(trial)


@dataclass(frozen=True)
class Wilcoxon:
    """Optuna's WilcoxonPruner, applied after each sample or at the stages of gptailor's race."""

    threshold: float = 0.1
    startup: int = 2
    seldom: bool = False

    def __call__(self, trial: np.ndarray, best: np.ndarray) -> int:
        """Return the number of samples after which the pruner gives a trial up, or all."""
        import optuna  # a peer that other runs don't need

        total = len(trial)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(
            p_threshold=self.threshold, n_startup_steps=self.startup
        )
        study = _study(tuple(map(float, best)))
        counts = filter(None, race_counts(total)) if self.seldom else range(1, total)
        for count in counts:
            values = dict(enumerate(map(float, trial[:count])))
            state = optuna.trial.TrialState.RUNNING
            one = optuna.trial.create_trial(state=state, intermediate_values=values)
            if pruner.prune(study, one):
                return count
        return total


@cache
def _study(best: tuple[float, ...]) -> Any:
    """Return a study with a best trial of these losses."""
    import optuna  # a peer that other runs don't need

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    values = dict(enumerate(best))
    study.add_trial(
        optuna.trial.create_trial(value=sum(best) / len(best), intermediate_values=values)
    )
    return study


PRUNERS: Final[Mapping[str, Pruner]] = {
    "gptailor's race": race,
    "WilcoxonPruner, p < 0.1, each sample": Wilcoxon(),
    "WilcoxonPruner, p < 0.05, from 4 samples": Wilcoxon(0.05, 4),
    "WilcoxonPruner, p < 0.05, when the race compares": Wilcoxon(0.05, 2, seldom=True),
}


@dataclass(frozen=True)
class Raced:
    """The trials of one search under a rule.

    `kept` is the lowest loss of the completed trials minus the lowest loss of all.
    """

    trials: int
    pruned: int
    saved: float
    better: int
    wrong: int
    kept: float


def raced(each: np.ndarray, starts: int, pruner: Pruner) -> Raced:
    """Run trials, `[trial, sample]`, against the best one so far; the starting plans run whole."""
    means = each.mean(axis=1)
    total = each.shape[1]
    best = int(np.argmin(means[:starts]))
    used, pruned, better, wrong = 0, 0, 0, 0
    for number in range(starts, len(each)):
        count = pruner(each[number], each[best])
        used += count
        pruned += count < total
        improves = means[number] < means[best]
        better += improves
        wrong += improves and count < total
        if improves and count == total:
            best = number
    trials = len(each) - starts
    saved = 1 - used / (trials * total) if trials else 0.0
    return Raced(trials, pruned, saved, better, wrong, float(means[best] - means.min()))


def race_rows(searches: Mapping[str, Sequence[tuple[np.ndarray, int]]]) -> Iterator[str]:
    """Return a line for each searcher's trials and each rule."""
    heads = ("trials of", "rule", "searches", "samples saved", "trials given up",
             "improvements given up", "the best plan given up", "loss behind it")  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|" + "--:|" * (len(heads) - 2)
    for name, runs in searches.items():
        for rule, pruner in PRUNERS.items():
            found = [raced(each, starts, pruner) for each, starts in runs]
            trials, better = sum(one.trials for one in found), sum(one.better for one in found)
            pruned, wrong = sum(one.pruned for one in found), sum(one.wrong for one in found)
            lost = sum(one.kept > 0 for one in found)
            cells = (name, rule, len(found), f"{np.mean([one.saved for one in found]):.0%}",
                     f"{pruned} of {trials}", f"{wrong} of {better}", lost,
                     f"{np.mean([one.kept for one in found]):.4f}")  # fmt: skip
            yield f"| {' | '.join(map(str, cells))} |"
