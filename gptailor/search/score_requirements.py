"""Requirements of scores and times, by which the best plans are judged in the end."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.write.digest import of_file
from gptailor.evaluate.scores import Failure, Outcome
from gptailor.evaluate.space_trials import Trials
from gptailor.evaluate.targets import base_of
from gptailor.lang.words import objective_words, requirement_words
from gptailor.plan.plan import LayerOf, Objective, Plan, Take
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import Stage, at_stage
from gptailor.program.nested_models import whole_plan
from gptailor.report.summary import RequiredRow, escaped_control
from gptailor.search.curve import Sizes, curve
from gptailor.search.run.notes import CONDITIONS
from gptailor.search.run.study import Study
from gptailor.search.run.trials import Ledger
from gptailor.search.settings import Settings, WishError
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space
from gptailor.search.verdict import held_key

_MOST = 10
"""Plans that are judged, those of the front and of each size besides."""


@final
class Told(NamedTuple):
    """What a plan has by each condition, also of held-out samples; None is a failure."""

    values: tuple[float | None, ...]
    held: tuple[float | None, ...]


@final
class Judged(NamedTuple):
    """How many plans were judged, all of them or not, and how many meet all that is required.

    `nearest` is the trial that is beyond by the least where no plan meets it; `rows` are those of
    each plan that was judged.
    """

    plans: int
    whole: bool
    met: int
    nearest: int | None
    rows: Mapping[str, tuple[RequiredRow, ...]]


@final
class Conditions:
    """What is required of the best plans. Made before the first trial, as it reads the texts.

    A text that the search reads is read as there: what is held out of it stays so. Another one is
    read as that of a search of it alone. What was judged has the measure's words and its text's
    digest, so that it counts for other bounds, and for no other text.
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
        read = {_text(one, chosen.folder) for one in chosen.objectives}
        for one in self.required:
            if one.bound.of is not None and one.bound.of not in trials.models:
                message = f"'{one.bound.of}' is a bound, and no plan takes anything of it"
                raise WishError(message)
            key = objective_words(one.objective)
            if OBJECTIVES[one.name].by == "samples":
                text = _text(one.objective, folder)
                scored = Trials(
                    trials.plan,
                    trials.models,
                    objectives=[(one.objective, True)],
                    folder=folder,
                    session=trials.session,
                    fidelity=(trials.full, trials.full) if text in read else None,
                    seed=chosen.seed,
                )
                key += f" {of_file(text).sha256}" if isinstance(text, Path) else ""
                self._scored[key] = scored
            self._keys.append(key)

    def judge(
        self,
        study: Study,
        space: Space,
        ledger: Ledger,
        sizes: Sizes,
        on_progress: Callable[[str], None],
    ) -> None:
        """Judge the best plans, the front, and the best one of each size; the ledger knows then."""
        if not self.required:
            return
        known = dict(study.typed.conditions)
        places = [trial for trial, _ in curve(ledger, sizes)]
        best = ledger.ranked(ledger.candidates(), _MOST)
        chosen = {held_key(trial): trial for trial in (*best, *ledger.front(), *places)}
        bounds = {one.bound.of for one in self.required if one.bound.of is not None}
        wanted: dict[str, tuple[Plan, Stage]] = {f"of {of}": (self._alone(of), "bare")
                                                 for of in sorted(bounds)}  # fmt: skip
        wanted |= {key: (decode(space, t.request.genome), t.request.stage)
                   for key, t in chosen.items()}  # fmt: skip
        left = {key: [one for one in dict.fromkeys(self._keys) if one not in known.get(key, {})]
                for key in wanted}  # fmt: skip
        fresh = [key for key in wanted if left[key]]
        for n, key in enumerate(fresh, start=1):
            on_progress(f"judging what is required: {n} of {len(fresh)}")
            told = {one: self._value(one, *wanted[key]) for one in left[key]}
            known[key] = {**known.get(key, {}), **told}
            study.note(CONDITIONS, known)
        self._whole = True
        self.about(study, ledger)

    def about(self, study: Study, ledger: Ledger) -> Judged | None:
        """Return what was judged; the ledger then knows which plans meet all, if one does.

        Where judging was interrupted it isn't `whole`: then nothing is required of plans, unless
        one is known to meet all. Return None where nothing is required.
        """
        if not self.required:
            return None
        ledger.met, noted = None, study.typed.conditions
        known = {key: Told(*zip(*(said[one] for one in self._keys), strict=True))
                 for key, said in noted.items() if said.keys() >= {*self._keys}}  # fmt: skip
        bounds, beside = self._bounds(known), self._bounds(known, held=True)
        found = {held_key(t): t for t in ledger.candidates() if held_key(t) in known}
        beyond = {key: self._distance(known[key], bounds) for key in found}
        met = {(found[key].plan, found[key].request.stage) for key in found if beyond[key] <= 0}
        ledger.met = met or None
        nearest = min(found, key=beyond.__getitem__, default=None) if not met else None
        return Judged(
            plans=len(found),
            whole=self._whole,
            met=len(met),
            nearest=None if nearest is None else found[nearest].number,
            rows={key: self._rows(known[key], bounds, beside) for key in found},
        )

    def _bounds(self, known: Mapping[str, Told], *, held: bool = False) -> list[float | None]:
        """What each condition's bound comes to, on held-out samples if it is by a model there."""
        found: list[float | None] = []
        for i, one in enumerate(self.required):
            share = 1.0 if one.bound.number is None else float(one.bound.number)
            told = None if one.bound.of is None else known.get(f"of {one.bound.of}")
            theirs = None if told is None else told.held[i] if held else told.values[i]
            value = 1.0 if one.bound.of is None else theirs
            found.append(None if value is None else share * value)
        return found

    def _distance(self, told: Told, bounds: Sequence[float | None]) -> float:
        """How far a plan is beyond the bound that it is farthest beyond, as a share of it."""
        worst = -math.inf
        for one, value, bound in zip(self.required, told.values, bounds, strict=True):
            if value is None or bound is None:
                return math.inf
            beyond = value - bound if one.sign == "<=" else bound - value
            worst = max(worst, beyond / (abs(bound) or 1.0))
        return worst

    def _rows(
        self, told: Told, bounds: Sequence[float | None], beside: Sequence[float | None]
    ) -> tuple[RequiredRow, ...]:
        rows = zip(self.required, bounds, told.values, told.held, beside, strict=True)
        return tuple(
            RequiredRow(
                require=escaped_control(requirement_words(required)),
                bound=bound,
                value=value,
                held=held,
                held_bound=None if held is None else there,
            )
            for required, bound, value, held, there in rows
        )

    # ------------------------------------------------------------------------------- one plan

    def _alone(self, name: str) -> Plan:
        """A model as it is, made of the models that are loaded."""
        plan = self.trials.plan
        if name == "base":
            return base_of(plan)
        made = whole_plan(plan, Take(take=LayerOf(model=name)))
        return made.read_from(plan.origin) if plan.origin else made

    def _value(self, key: str, plan: Plan, stage: Stage) -> tuple[float | None, float | None]:
        """What a plan has by a measure, also of held-out samples."""
        scored = self._scored.get(key)
        if scored is None:
            return self.trials.latencies.score(at_stage(plan, "bare")).value, None
        [(_, [seen])] = scored.run([plan], scored.full, stage=stage)
        if not any(scored.helds):
            return _finite(seen), None
        [(_, [held])] = scored.held_out([plan], stage=stage)
        return _finite(seen), _finite(held)


def _text(objective: Objective, folder: Path) -> Path | str:
    """The file that an objective reads, or its task."""
    file = objective.arguments.get("file")
    if file is None:
        return str(objective.arguments.get("task"))
    return (folder / expanded(str(file))).resolve()


def _finite(outcome: Outcome) -> float | None:
    """A value that others can be compared with; None for a failure."""
    if isinstance(outcome, Failure) or not math.isfinite(outcome.value):
        return None
    return float(outcome.value)
