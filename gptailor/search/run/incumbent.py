"""What a strategy's trials run against: the best plan that is known, sample by sample."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from gptailor.evaluate.rival_scores import Race, race_counts
from gptailor.search.run.scores import best
from gptailor.search.run.trials import SEARCH, Ledger, Trial, TrialRequest


def race_of(ledger: Ledger, request: TrialRequest) -> Race | None:
    """The race that a request takes part in, by what had been told when it was asked for.

    So it is the same in a process that goes on. The rival is the best plan at full fidelity, as far
    repaired as the trial, whichever objective is preferred. There is no race where a score is no
    mean of samples, or where the base isn't known at each look, since others are measured by it.
    """
    rival = _rival(ledger, request)
    if rival is None:
        return None
    each = tuple(one for one in rival.per_sample if one is not None)
    measures = (ledger.fitness_measure(i, ledger.full) for i in range(len(ledger.aims)))
    return Race((each,), tuple(measure.per_score for measure in measures))


def _rival(ledger: Ledger, request: TrialRequest) -> Trial | None:
    looks = [count for count in race_counts(request.samples) if count]
    if request.phase != SEARCH or not looks or not ledger.references.keys() >= set(looks):
        return None
    alike = [
        trial
        for trial in ledger.trials[: request.asked_after]
        if trial.full and trial.same_as is None and trial.request.stage == request.stage
    ]
    losses = [ledger.loss(trial, ledger.rated) for trial in alike]
    found = best([math.nan if lost is None else -lost.value for lost in losses])
    if found is None or sum(e is not None for e in alike[found].per_sample) < len(ledger.aims):
        return None
    return alike[found]


def expected_losses(ledger: Ledger, trials: Sequence[Trial]) -> Float[np.ndarray, "n m"]:
    """Losses as if on all samples that were asked for; NaN for failures.

    A trial that was given up is as far behind its rival as it was there, and never ahead of it.
    """
    found = ledger.losses(trials)
    for row, trial in zip(found, trials, strict=True):
        own = trial if trial.same_as is None else ledger.trials[trial.same_as]
        rival = None if own.stopped is None else _rival(ledger, own.request)
        if rival is not None:
            whole, there = (_on(rival, count) for count in (own.request.samples, own.samples))
            full, first, mine = ledger.losses([whole, there, own])
            row[:] = full + np.maximum(mine - first, 0)
    return found


def _on(trial: Trial, samples: int) -> Trial:
    """The trial, with values of its first samples alone."""
    if samples == trial.samples:
        return trial
    each = (one for one in trial.per_sample if one is not None)
    return replace(trial, values=tuple(one.score(samples).value for one in each), stopped=samples)
