"""Searches on other draws of the samples, and how far their results agree: `Resampling`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any, final

from gptailor.evaluation.scores import Outcome
from gptailor.evaluation.space_trials import opened
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import sources
from gptailor.plan.stage import Stage
from gptailor.prepare import ModelPaths
from gptailor.reporting.summary import DrawPair, DrawsAgreement, RepeatedDraw
from gptailor.searching.evaluate import computing, trials_of
from gptailor.searching.results import SearchResult
from gptailor.searching.run.comparison import Comparison, Scores
from gptailor.searching.run.scores import per_objective
from gptailor.searching.run.trials import read_outcomes
from gptailor.searching.settings import Flags, Resources, settings

FOLDER = "repeat-{}"
"""The name of the folder of a search on another draw, within that of the first."""


Once = Callable[[str | Path, Flags, Resources], SearchResult]
"""A search, in a folder."""


@final
@dataclass(frozen=True)
class Resampling:
    """An open plan to search again with other draws, and the flags of the first search."""

    plan: Plan
    run: str | Path
    flags: Flags
    where: Resources
    models: ModelPaths | None
    on_progress: Callable[[str], None]

    def others(self, first: SearchResult, once: Once) -> DrawsAgreement | None:
        """Return how far the plans of other draws agree with the first one; None if interrupted.

        Each search has its folder in that of the first, and can be resumed. Plans that were
        compared before aren't compared again. Draws on which no plan was found are `without` one.
        """
        seed = settings(self.plan, self.flags).seed
        by_seed = {seed: first}
        for number in range(1, self.flags.repeat_calibration + 1):
            many = self.flags.repeat_calibration
            self.on_progress(f"searching on another draw of the samples: {number} of {many}")
            name = FOLDER.format(number)
            run = self.run / name if isinstance(self.run, Path) else f"{self.run}/{name}"
            flags = replace(self.flags, seed=seed + number, repeat_calibration=0)
            where = replace(self.where, study=f"{self.where.study}-{name}")
            other = once(run, flags, where)
            if other.ended == "interrupted":
                return None
            by_seed[seed + number] = other
        plans = {n: load(s.best) for n, s in by_seed.items() if s.best is not None}
        without = [n for n in by_seed if n not in plans]
        assert first.summary.best is not None, "a search without a best plan isn't repeated"
        stage = first.summary.best.stage
        words = [f"{n} {stage} {format_plan(plan)}" for n, plan in plans.items()]
        key = sha256("".join([*words, *map(str, without)]).encode()).hexdigest()
        earlier = first.summary.repeats
        if earlier is not None and earlier.of == key:
            return earlier
        compared = self._compared(first, list(plans.values()), list(plans), stage)
        return DrawsAgreement(of=key, without=tuple(without), **compared)

    def _compared(
        self, first: SearchResult, plans: Sequence[Plan], seeds: Sequence[int], stage: Stage
    ) -> dict[str, Any]:
        """Return the scores of all plans on all samples of each draw, and their common layers.

        `agree` is on how many of the other draws the first plan is no worse than the plan found
        there, as verdicts have it.
        """
        plan, models, _ = opened(self.plan, self.models)
        chosen, where = settings(plan, self.flags), computing(self.where, models, first.summary)
        verdict = first.summary.verdict
        assert verdict is not None, "a best plan has a verdict"
        aims = first.summary.objectives
        measure = Comparison(aims, verdict.numbers, verdict.widths, chosen.texts, verdict.unit)
        runs: list[RepeatedDraw] = []
        agree = 0
        for number, seed in enumerate(seeds):
            self.on_progress(f"scoring the plans found on draw {number + 1} of {len(seeds)}")
            trials = trials_of(plan, models, replace(chosen, seed=seed), where)
            scores: list[Scores | None] = [None] * len(plans)
            for index, outcomes in trials.run(plans, trials.full, stage=stage):
                scores[index] = _scores(outcomes)
            values = tuple(None if score is None else tuple(score.values) for score in scores)
            runs.append(RepeatedDraw(seed=seed, scores=values))
            of_first, of_draw = scores[0], scores[number]
            if number and of_first is not None:
                agree += of_draw is None or not measure.loss(of_first, of_draw).sure
        agreement = plans_agreement(plans, models["base"].layout.count)
        return {"runs": tuple(runs), "agree": agree, **agreement}


def _scores(outcomes: Sequence[Outcome]) -> Scores | None:
    values, stderrs, _ = read_outcomes(outcomes)
    if values is None or stderrs is None:
        return None
    return Scores(values, stderrs, per_objective(outcomes))


def plans_agreement(plans: Sequence[Plan], layers: int) -> dict[str, Any]:
    """Return the common dropped layers and sources of plans found on several draws."""
    drops = [{drop.position for drop in plan.drops} for plan in plans]
    models = [_layer_models(plan, layers) for plan in plans]
    kept = set.intersection(*map(set, models))
    return {
        "dropped": tuple(map(len, drops)),
        "dropped_in_all": len(set.intersection(*drops)),
        "kept_in_all": len(kept),
        "alike_in_all": sum(len({by_layer[p] for by_layer in models}) == 1 for p in kept),
        "pairs": tuple(
            DrawPair(
                of=(a, b),
                dropped=len(drops[a] & drops[b]),
                alike=sum(models[a][p] == models[b][p] for p in {*models[a]} & {*models[b]}),
            )
            for a, b in combinations(range(len(plans)), 2)
        ),
    }  # fmt: skip


def _layer_models(plan: Plan, layers: int) -> dict[int, frozenset[str]]:
    """Return the models that each kept layer is made of, by position; a stack's by number."""
    models: dict[int, frozenset[str]] = {}
    for number, slot in enumerate(Resolved(plan, layers).slots):
        if slot.dropped == "yes":
            continue
        recipes = [layer_recipe.recipe for layer_recipe in slot.recipes.values()]
        names = (source.model for recipe in recipes for _, source in sources(recipe))
        position = number if slot.position is None else slot.position
        models[position] = frozenset(name for name in names if isinstance(name, str))
    return models
