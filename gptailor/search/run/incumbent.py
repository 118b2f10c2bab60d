"""What a strategy's trials run against: the best plan that is known, sample by sample."""

from gptailor.evaluate.rivals import Race, race_counts
from gptailor.search.run.trials import SEARCH, Ledger, TrialRequest


def race_of(ledger: Ledger, request: TrialRequest) -> Race | None:
    """The race that a request takes part in, by what had been told when it was asked for.

    So it is the same in a process that goes on. The rival is the best plan at full fidelity, as far
    repaired as the trial. There is no race where a score is no mean of samples, or where the base
    isn't known at each look, since others are measured by it.
    """
    looks = [count for count in race_counts(request.samples) if count]
    if request.phase != SEARCH or not looks or not ledger.references.keys() >= set(looks):
        return None
    alike = (
        trial
        for trial in ledger.trials[: request.asked_after]
        if trial.full and trial.same_as is None and trial.request.stage == request.stage
    )
    best = ledger.best([trial for trial in alike if trial.values is not None])
    if best is None:
        return None
    rival = tuple(each for each in best.per_sample if each is not None)
    if len(rival) < len(ledger.aims):
        return None
    return Race((rival,), tuple(ledger.worth(number) for number in range(len(ledger.aims))))
