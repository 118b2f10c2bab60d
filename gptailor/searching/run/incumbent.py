"""The rival of a strategy's trials in races: the best known plan, sample by sample."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from gptailor.evaluation.scores import Race, race_counts
from gptailor.searching.run.trials import SEARCH, Ledger, Trial, TrialRequest


def race_of(ledger: Ledger, request: TrialRequest) -> Race | None:
    """Return the race of a request, by the trials that were told when it was asked for.

    So a resumed process has the same race. The rival is the best plan at full fidelity, as far
    repaired as the trial, whichever objective is preferred. The result is None where a score isn't
    a mean of samples, or where the base isn't known at each look, since losses are measured by it.
    """
    rival = _rival(ledger, request)
    if rival is None:
        return None
    each = tuple(samples for samples in rival.per_sample if samples is not None)
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
    losses = {trial: ledger.loss(trial, ledger.rated) for trial in alike}
    known = {trial: lost.value for trial, lost in losses.items() if lost is not None}
    rival = min(known, key=known.__getitem__, default=None)
    if rival is None or sum(e is not None for e in rival.per_sample) < len(ledger.aims):
        return None
    return rival


def expected_losses(ledger: Ledger, trials: Sequence[Trial]) -> Float[np.ndarray, "n m"]:
    """Return losses as if on all samples that were asked for; NaN for failures.

    A trial that was given up stays as far behind its rival as when it stopped, and never ahead.
    """
    losses = ledger.losses(trials)
    for row, trial in zip(losses, trials, strict=True):
        own = trial if trial.same_as is None else ledger.trials[trial.same_as]
        rival = None if own.stopped is None else _rival(ledger, own.request)
        if rival is not None:
            rivals = [_on(rival, count) for count in (own.request.samples, own.samples)]
            full, stopped, lost = ledger.losses([*rivals, own])
            row[:] = full + np.maximum(lost - stopped, 0)
    return losses


def _on(trial: Trial, samples: int) -> Trial:
    """Return the trial with the values of its first samples alone."""
    if samples == trial.samples:
        return trial
    scores = (each.score(samples) for each in trial.per_sample if each is not None)
    return replace(trial, values=tuple(score.value for score in scores), stopped=samples)
