"""Scores on what a search never sees, of what it found and of what it began with: `HeldOut`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gptailor.evaluate.trial import Trials
from gptailor.plan.plan import Plan
from gptailor.search.evaluate import plain_outcome
from gptailor.search.run.study import Study
from gptailor.search.run.trials import Trial, read_outcomes
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space

NOTE = "held out"
BASE = "base"


@final
@dataclass(frozen=True)
class HeldOut:
    """Held-out scores by plan. They are written down in the study, so that each is made once."""

    study: Study
    known: Mapping[str, Any]

    def of(self, trial: Trial | None) -> Mapping[str, Any] | None:
        """Of a trial's plan, as that was evaluated, or of the base; None where there is none."""
        return self.known.get(BASE if trial is None else _key(trial))


def _key(trial: Trial) -> str:
    return trial.plan + (" bridged" if trial.wanted.bridged else "")


def recalled(study: Study) -> HeldOut:
    """What the study has of them."""
    return HeldOut(study, dict(study.notes.get(NOTE, {})))


def held_out(
    study: Study,
    space: Space,
    trials: Trials,
    base: Plan,
    chosen: Sequence[Trial],
    doing: Callable[[str], None],
) -> HeldOut:
    """The scores of the base and of some trials' plans, those that weren't made before."""
    known: dict[str, Any] = dict(study.notes.get(NOTE, {}))
    if trials.held == 0:
        return HeldOut(study, {})
    wanted: dict[str, tuple[Plan, bool]] = {BASE: (base, False)}
    wanted |= {_key(t): (decode(space, t.wanted.genome), t.wanted.bridged) for t in chosen}
    fresh = {key: plan for key, plan in wanted.items() if key not in known}
    done = 0
    for bridged in (False, True):
        keys = [key for key, (_, how) in fresh.items() if how == bridged]
        for index, outcomes in trials.held_out([fresh[key][0] for key in keys], bridged=bridged):
            done += 1
            doing(f"scoring on what was held out: {done} of {len(fresh)}")
            known[keys[index]] = _said(tuple(map(plain_outcome, outcomes)))
            study.note(NOTE, known)
    return HeldOut(study, known)


def _said(outcomes: tuple[Any, ...]) -> dict[str, Any]:
    values, stderrs, failure = read_outcomes(outcomes)
    if values is None or stderrs is None:
        return {"failure": failure}
    return {"values": list(values), "stderrs": [e if e < float("inf") else None for e in stderrs]}
