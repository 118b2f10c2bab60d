"""The measurements after a search's last trial: requirements of scores and times, held-out text.

The best plans are evaluated for them, and each value is noted in the study.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, final

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.write.digest import of_file
from gptailor.evaluation.scores import Failure, Outcome
from gptailor.evaluation.space_trials import Trials
from gptailor.evaluation.targets import base_of, unchanged
from gptailor.lang.words import objective_words, statement_words
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import STAGES, Stage, at_stage
from gptailor.reporting.measure import excess, finite_or_none
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.limits import Sizes
from gptailor.searching.run.records import RequiredNote, RequirementNote
from gptailor.searching.run.scores import read_outcomes
from gptailor.searching.run.study import HeldOutFailure, Study
from gptailor.searching.run.trials import Ledger, Trial
from gptailor.searching.run.workers import BASE
from gptailor.searching.settings import Settings, WishError
from gptailor.searching.space.decode import decode, decode_for
from gptailor.searching.space.space import Space
from gptailor.searching.summary import curve, held_key

_MOST = 10
"""The best plans that are evaluated, in addition to the front and the best of each size."""


_Pair: TypeAlias = tuple[float | None, float | None]
"""A value, and the value on held-out samples; None is a failure."""


@final
class Conditions:
    """Requirements of the best plans. Made before the first trial, since it reads the texts.

    A text that the search reads too is split alike: held-out samples stay held out. Another text is
    read as in a search of it alone. A value is noted by the measure's words and the digest of
    its text, so that it counts for other bounds, but for no other text.
    Raises CalibrationError and ObjectiveError as `Trials` does, WishError for a bound by a
    model that no plan takes anything of.
    """

    def __init__(self, trials: Trials, chosen: Settings) -> None:
        self.required = chosen.conditions
        self.trials = trials
        self._whole = False
        self._scored: dict[str, Trials] = {}
        self._keys: list[str] = []
        origin = trials.plan.origin
        folder = origin.folder if origin else Path()
        read = {_text(objective, chosen.folder) for objective in chosen.objectives}
        for required in self.required:
            if required.bound.of is not None and required.bound.of not in trials.models:
                message = f"the plan uses '{required.bound.of}' only for a bound"
                raise WishError(message)
            key = objective_words(required.objective)
            if OBJECTIVES[required.name].by == "samples":
                text = _text(required.objective, folder)
                scored = Trials(
                    trials.plan,
                    trials.models,
                    objectives=[(required.objective, True)],
                    folder=folder,
                    meter=trials.meter,
                    fidelity=(trials.full, trials.full) if text in read else None,
                    seed=chosen.seed,
                )
                key += f" {of_file(text).sha256}" if isinstance(text, Path) else ""
                self._scored[key] = scored
            self._keys.append(key)

    def evaluate(
        self,
        study: Study,
        space: Space,
        ledger: Ledger,
        sizes: Sizes,
        on_progress: Callable[[str], None],
    ) -> None:
        """Evaluate the best plans, the front, and the best plan of each size; mark the ledger."""
        if not self.required:
            return
        noted = dict(study.typed.conditions)
        places = [trial for trial, _ in curve(ledger, sizes.of)]
        best = ledger.ranked(ledger.candidates(), _MOST)
        chosen = {held_key(trial): trial for trial in (*best, *ledger.front(), *places)}
        bounds = {r.bound.of for r in self.required if r.bound.of is not None}
        plans: dict[str, tuple[Plan, Stage]] = {}
        for of in sorted(bounds):
            plan = self.trials.plan  # made of the models that are loaded
            plans[f"of {of}"] = (base_of(plan) if of == "base" else unchanged(plan, of)), "bare"
        plans |= {key: (decode(space, t.request.genome), t.request.stage)
                  for key, t in chosen.items()}  # fmt: skip
        fresh = [key for key in plans if not {*self._keys} <= noted.get(key, {}).keys()]
        for n, key in enumerate(fresh, start=1):
            on_progress(f"evaluating the requirements: {n} of {len(fresh)}")
            known = noted.get(key, {})
            missing = [m for m in dict.fromkeys(self._keys) if m not in known]
            noted[key] = {**known, **{m: self._value(m, *plans[key]) for m in missing}}
            study.note("conditions", noted)
        self._whole = True
        self.about(study, ledger)

    def about(self, study: Study, ledger: Ledger) -> RequiredNote | None:
        """Return the result; mark plans that meet all requirements in the ledger, if any does.

        An interrupted evaluation isn't `whole`: then plans need not meet anything, unless a plan is
        known to meet all. Return None where nothing is required.
        """
        if not self.required:
            return None
        ledger.met, noted = None, study.typed.conditions
        measured = {key: [pairs[measure] for measure in self._keys]
                    for key, pairs in noted.items() if pairs.keys() >= {*self._keys}}  # fmt: skip
        bounds = [self._bound(i, measured) for i in range(len(self.required))]
        trials = {held_key(t): t for t in ledger.candidates() if held_key(t) in measured}
        beyond = {key: self._excess(measured[key], bounds) for key in trials}
        met = [trial.number for key, trial in trials.items() if beyond[key] <= 0]
        ledger.met = {*met} or None
        nearest = min(trials, key=beyond.__getitem__, default=None) if not met else None
        rows = (
            RequirementNote(
                require=escaped_control(statement_words([required])),
                measure=key,
                bound=bound,
                held_bound=held_bound,
            )
            for required, key, (bound, held_bound) in zip(
                self.required, self._keys, bounds, strict=True
            )
        )
        return RequiredNote(
            evaluated=len(trials),
            whole=self._whole,
            met=tuple(met),
            nearest=None if nearest is None else trials[nearest].number,
            rows=tuple(rows),
        )

    def _bound(self, i: int, measured: Mapping[str, Sequence[_Pair]]) -> _Pair:
        """Return a condition's bound, and its bound on held-out samples if a model sets it."""
        of, number = self.required[i].bound.of, self.required[i].bound.number
        share, model = 1.0 if number is None else float(number), f"of {of}"
        if of is None:
            return share, share
        seen, held = measured[model][i] if model in measured else (None, None)
        return None if seen is None else share * seen, None if held is None else share * held

    def _excess(self, measured: Sequence[_Pair], bounds: Sequence[_Pair]) -> float:
        """Return how far a plan is beyond its farthest bound, as a share of it."""
        pairs = zip(self.required, measured, bounds, strict=True)
        return max(excess(each.sign, value, bound) for each, (value, _), (bound, _) in pairs)

    # ------------------------------------------------------------------------------- one plan

    def _value(self, key: str, plan: Plan, stage: Stage) -> tuple[float | None, float | None]:
        """Return a plan's value by a measure, and on held-out samples; None without any."""
        scored = self._scored.get(key)
        if scored is None:
            return self.trials.latencies.score(at_stage(plan, "bare")).value, None
        [(_, [outcome])] = scored.run([plan], scored.full, stage=stage)
        [(_, [held])] = scored.run([plan], None, stage=stage)
        return _finite(outcome), _finite(held)


def _text(objective: Objective, folder: Path) -> Path | str:
    """Return the file that an objective reads, or its task."""
    file = objective.arguments.get("file")
    if file is None:
        return str(objective.arguments.get("task"))
    return (folder / expanded(str(file))).resolve()


def _finite(outcome: Outcome) -> float | None:
    """Return a value that can be compared; None for a failure."""
    return None if isinstance(outcome, Failure) else finite_or_none(float(outcome.value))


def held_out(
    study: Study,
    space: Space,
    trials: Trials,
    base: Plan,
    chosen: Sequence[Trial],
    on_progress: Callable[[str], None],
) -> None:
    """Note the held-out scores of the base and of trials' plans that aren't noted yet."""
    if not any(trials.helds):
        return
    notes = dict(study.typed.held_out)
    plans: dict[str, tuple[Plan, Stage]] = {BASE: (base, "bare")}
    plans |= {
        held_key(t): (decode_for(space, t.request.genome, t.request.stage), t.request.stage)
        for t in chosen
    }
    fresh = {key: plan for key, plan in plans.items() if key not in notes}
    done = 0
    for stage in STAGES:
        keys = [key for key, (_, how) in fresh.items() if how == stage]
        for index, outcomes in trials.run([fresh[key][0] for key in keys], None, stage=stage):
            done += 1
            on_progress(f"scoring on held-out samples: {done} of {len(fresh)}")
            scores = read_outcomes(outcomes)
            if isinstance(scores, Failure):
                notes[keys[index]] = HeldOutFailure(failure=str(scores))
            else:
                notes[keys[index]] = scores
            study.note("held_out", notes)
