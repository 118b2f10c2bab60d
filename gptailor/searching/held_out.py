"""Score plans on held-out samples after a search's last trial."""

from collections.abc import Callable, Sequence
from typing import Any

from gptailor.evaluation.scores import Outcomes
from gptailor.evaluation.space_trials import Trials
from gptailor.plan.plan import Plan
from gptailor.plan.stage import STAGES, Stage
from gptailor.searching.run.notes import HELD_OUT
from gptailor.searching.run.scores import per_objective, per_sample_to_json
from gptailor.searching.run.study import Study
from gptailor.searching.run.trials import Trial, json_numbers, read_outcomes
from gptailor.searching.run.workers import BASE
from gptailor.searching.space.decode import decode_for
from gptailor.searching.space.space import Space
from gptailor.searching.verdict import HeldOut, held_key


def held_out(
    study: Study,
    space: Space,
    trials: Trials,
    base: Plan,
    chosen: Sequence[Trial],
    on_progress: Callable[[str], None],
) -> HeldOut:
    """Return held-out scores of the base and of trials' plans; make the missing ones."""
    if not any(trials.helds):
        return {}
    notes = dict(study.notes.get(HELD_OUT, {}))
    plans: dict[str, tuple[Plan, Stage]] = {BASE: (base, "bare")}
    plans |= {
        held_key(t): (decode_for(space, t.request.genome, t.request.stage), t.request.stage)
        for t in chosen
    }
    fresh = {key: plan for key, plan in plans.items() if key not in notes}
    done = 0
    for stage in STAGES:
        keys = [key for key, (_, how) in fresh.items() if how == stage]
        for index, outcomes in trials.held_out([fresh[key][0] for key in keys], stage=stage):
            done += 1
            on_progress(f"scoring on what was held out: {done} of {len(fresh)}")
            notes[keys[index]] = _held_note(outcomes)
            study.note(HELD_OUT, notes)
    return study.typed.held_out


def _held_note(outcomes: Outcomes) -> dict[str, Any]:
    values, stderrs, failure = read_outcomes(outcomes)
    if values is None or stderrs is None:
        return {"failure": str(failure)}
    note: dict[str, Any] = {"values": list(values), "stderrs": json_numbers(stderrs)}
    if each := per_objective(outcomes):
        note["per_sample"] = per_sample_to_json(each)
    return note
