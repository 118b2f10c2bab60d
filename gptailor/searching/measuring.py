"""Measure layers, cuts and costs before a search's first trial."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, final

import numpy as np

from gptailor.evaluation.fits.bridge.gaps import plan_gap_errors
from gptailor.evaluation.fits.fit import (
    BRIDGE_PASSES,
    bridged_tokens,
    heal_passes,
    healed_tokens,
)
from gptailor.evaluation.objectives.base import Forward
from gptailor.evaluation.objectives.size_and_speed import OfPlan
from gptailor.evaluation.space_trials import Trials
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.plan.stage import at_stage
from gptailor.reporting.measure import LossMeasure
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import UniformMerge, composition_words
from gptailor.searching.run.scores import Scores, read_outcomes
from gptailor.searching.run.study import FoundNote, Study
from gptailor.searching.settings import Settings
from gptailor.searching.space.roles import separates
from gptailor.searching.space.space import Space, with_gap_errors
from gptailor.searching.starts.compositions import wholes
from gptailor.searching.starts.cuts import (
    candidates,
    greedy_removal,
    nested_cuts,
)
from gptailor.searching.starts.recipes import Recipes
from gptailor.searching.starts.stages import Starts
from gptailor.searching.strategies import strategy_of

_GLANCE = 1 / 8
"""The share of all samples for measuring block influence, without a cheaper fidelity."""
_GLANCED = 8, 32
"""The fewest samples that block influence is measured on, and the most."""
_REMOVAL_SHARE = 1 / 10
"""The share of the budget that greedy removal may cost."""
OnMeasuring: TypeAlias = Callable[[str, int, int], None]
"""Receives the current measurement, how many evaluations are done, and how many there are."""


def repair_cost(trials: Trials, budget: Budget) -> float | None:
    """Return the cost of bridging and healing one plan in the end, in evaluations.

    It depends on the tokens that are read. None where an objective does more than read.
    """
    if budget.final is None:
        return 0.0
    reading = [objective for objective in trials.seen if not isinstance(objective, OfPlan)]
    read = [each.requests(budget.full) for each in reading if isinstance(each, Forward)]
    tokens = sum(len(request.tokens) for requests in read for request in requests)
    if len(read) < len(reading) or not tokens:
        return None
    cost = BRIDGE_PASSES * bridged_tokens(trials.plan)
    if budget.final == "healed":
        cost += heal_passes(trials.plan) * healed_tokens(trials.plan)
    return cost / tokens


def starts_of(
    space: Space,
    trials: Trials,
    budget: Budget,
    study: Study,
    chosen: Settings,
    on_progress: OnMeasuring,
) -> tuple[Starts, Budget]:
    """Return the starting plans and the budget with the cost of their measurements.

    The layers are measured once, and each measurement is noted in the study: a later process goes
    on, and starts in the same way. Raises TailorError for a forward pass without numbers.
    """
    trials.latencies.known |= study.typed.latencies
    trials.latencies.on_measured = lambda latencies: study.note("latencies", dict(latencies))
    measuring = _Measuring(space, trials, budget, study, on_progress)
    try:
        influence = measuring.influence()
        errors = measuring.gap_errors()
        removed = measuring.removal(influence["base"]) if "base" in influence else ()
    except ValueError as error:
        raise TailorError(f"the models can't be measured: {error}") from error
    measured, separate = study.typed.measured.evaluations, separates(space.plan)
    budget = replace(budget, measured=measured, separate=separate)
    recipes = (
        Recipes(
            space,
            strategy_of(chosen.strategy),
            room=budget.recipes,
            asks=budget.asked_recipes,
            rivals=budget.rivals,
            seed=chosen.seed,
        )
        if budget.separate
        else None
    )
    space = space if errors is None else with_gap_errors(space, errors)
    starts = Starts(space, influence, removed, budget.low / budget.full, budget.starts, recipes)
    return starts, budget


@final
class _Measuring:
    """The measurements before the first trial, with their progress, notes and cost."""

    def __init__(
        self, space: Space, trials: Trials, budget: Budget, study: Study, on_progress: OnMeasuring
    ) -> None:
        self.space = space
        self.trials = trials
        self.budget = budget
        self.study = study
        self.on_progress = on_progress
        self.plans = wholes(space)
        if separates(space.plan):  # which of them are cut is not known before recipes are compared
            names = ("base", composition_words(UniformMerge(models=("base",), every=True)))
            self.plans = {name: self.plans[name] for name in names if name in self.plans}
        low, most = budget.low / budget.full, _REMOVAL_SHARE * budget.trials
        fixed = any(not drop.maybe for drop in space.plan.drops)
        self.bridges = bool(space.plan.bridges) and "base" in self.plans and not fixed
        bare = "base" in self.plans and not self.bridges
        self.width = candidates(space, low, most) if bare else 0
        self.total = len(self.plans) + self._removals(int(sum(space.table.high))) + self.bridges
        self.done = 0
        self.spent = 0
        self._refuse_misfit()
        self.begun = time.perf_counter()

    def _refuse_misfit(self) -> None:
        """Raise CheckpointError C903 for notes of other layers than the space has."""
        layers, notes = self.space.layers, self._noted
        places = {bit.at for bit in self.space.bits if bit.group >= 0}
        removed = notes.removal or ()
        if (
            any(len(of_each) != layers for of_each in (notes.influence or {}).values())
            or len(places.intersection(removed)) < len(removed)
            or len(removed) > int(sum(self.space.table.high))
            or len(notes.gaps or range(layers)) != layers
        ):
            raise self.study.error("has a damaged note: 'measured' has other layers")

    def _removals(self, rounds: int) -> int:
        """Return how many plans this many rounds of greedy removal try."""
        places = sum(bit.group >= 0 for bit in self.space.bits)
        return sum(min(self.width, places - n) for n in range(rounds)) if self.width else 0

    def influence(self) -> Mapping[str, Sequence[float]]:
        """Return each layer's block influence, by the name of each plan without drops."""
        budget = self.budget
        least, most = _GLANCED
        glance = min(max(round(_GLANCE * budget.full), least), most, budget.full)
        samples = budget.low if budget.low < budget.full else glance
        influence: dict[str, Sequence[float]] = dict(self._noted.influence or {})
        for name, plan in self.plans.items():
            words = "measuring the influence of each layer" + f" in {name}" * (len(self.plans) > 1)
            self.on_progress(words, self.done, self.total)
            if name not in influence:
                influence[name] = list(self.trials.block_influence(plan, samples))
                self.spent += samples
                self._note("influence", influence)
            self.done += 1
        return self._noted.influence or {}

    def gap_errors(self) -> Sequence[Sequence[float]] | None:
        """Return the errors of the plan's bridge over each gap; None without a bridge."""
        if not self.bridges:
            return None
        widest = len(nested_cuts(self.space, np.zeros(self.space.layers))[-1])
        words = "measuring the error of each bridged gap"
        self.on_progress(words, self.done, self.total)
        if self._noted.gaps is None:
            errors = gap_errors_of(self.trials, self.plans["base"], widest)
            self.spent += self.budget.full
            self._note("gaps", errors)
        self.done += 1
        self.on_progress(words, self.done, self.total)
        return self._noted.gaps

    def removal(self, influence: Sequence[float]) -> Sequence[int]:
        """Return the positions that greedy removal takes from the base, in order."""
        positions: Sequence[int] = self._noted.removal or ()
        self.done += self._removals(len(positions))
        base = self.plans["base"]
        rounds = greedy_removal(self.space, base, influence, self._losses, self.width, positions)
        for positions in rounds:
            self._note("removal", list(positions))
        return positions if len(positions) == int(sum(self.space.table.high)) else ()

    def _losses(self, removed: Sequence[Plan]) -> list[float]:
        """Return each plan's mean loss over the objectives, relative to their magnitudes.

        NaN is a failure. The means only compare these plans with each other.
        """
        of = " of the base" * (len(self.plans) > 1)
        what = f"removing layers{of} one by one: {len(removed[0].drops)}"
        self.on_progress(what, self.done, self.total)
        signs = [LossMeasure(objective.direction).per_score for objective in self.trials.seen]
        losses = np.full((len(removed), len(signs)), np.nan)
        for index, outcomes in self.trials.run(removed, self.budget.low, stage="bare"):
            self.done += 1
            self.on_progress(what, self.done, self.total)
            scores = read_outcomes(outcomes)
            if isinstance(scores, Scores):
                losses[index] = np.multiply(signs, scores.values)
        self.spent += self.budget.low * len(removed)
        scales = np.abs(np.nan_to_num(losses)).sum(axis=0)
        return [*(losses / np.where(scales > 0, scales, 1.0)).mean(axis=1)]

    @property
    def _noted(self) -> FoundNote:
        return self.study.typed.measured.found

    def _note(self, name: str, value: Any) -> None:
        now, earlier = time.perf_counter(), self.study.typed.measured
        cost = earlier.evaluations + self.spent / self.budget.full
        seconds, self.begun, self.spent = earlier.seconds + now - self.begun, now, 0
        found = {**earlier.found.model_dump(mode="json", exclude_none=True), name: value}
        note = {"evaluations": round(cost, 4), "seconds": round(seconds, 1), "found": found}
        self.study.note("measured", note)


def gap_errors_of(trials: Trials, uncut: Plan, widest: int) -> list[list[float]]:
    """Return the error that the space's bridge leaves over each gap of a plan without drops."""
    live = trials.meter.repairs(trials.models).stitcher.stitch(at_stage(uncut, "bare"))
    return plan_gap_errors(live, trials.plan, uncut, trials.models, widest)
