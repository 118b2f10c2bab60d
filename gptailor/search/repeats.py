"""Searches on other draws of the samples, and how far what they find agrees: `compared`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import Any, final

from gptailor.evaluate.outcome import Outcome
from gptailor.evaluate.trial import Trials
from gptailor.lang.format import format_plan
from gptailor.plan.layers import slots
from gptailor.plan.plan import Plan
from gptailor.plan.stage import Stage
from gptailor.plan.walk import sources
from gptailor.search.run.per_sample import per_objective
from gptailor.search.run.study import Study
from gptailor.search.run.trials import read_outcomes
from gptailor.search.verdict import SURE, Measure, Scores

_REPEATS = "repeats"
"""The study's note of what plans score on other draws, so that this is measured once."""


@final
@dataclass(frozen=True)
class Draw:
    """A search on one draw of the samples: its seed, the plan found, and the trials of that draw."""

    seed: int
    plan: Plan
    trials: Callable[[], Trials]


def compared(
    draws: Sequence[Draw],
    stage: Stage,
    measure: Measure,
    layers: int,
    study: Study,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """How far the plans of several draws agree, this search's first: in layers and in scores.

    Each plan is scored on all samples of each draw. `agree` is on how many of the other draws the
    first one's plan is no worse than the plan found there, as `verdict` compares them.
    """
    plans = [draw.plan for draw in draws]
    words = "".join(f"{draw.seed} {stage} {format_plan(draw.plan)}" for draw in draws)
    key = sha256(words.encode()).hexdigest()
    known: Mapping[str, Any] = study.notes.get(_REPEATS, {})
    if known.get("of") == key:
        return dict(known["found"])
    runs: list[dict[str, Any]] = []
    agree = 0
    for number, draw in enumerate(draws):
        on_progress(f"scoring the plans found on draw {number + 1} of {len(draws)}")
        trials = draw.trials()
        scores: list[Scores | None] = [None] * len(plans)
        for index, outcomes in trials.run(plans, trials.full, stage=stage):
            scores[index] = _scores(outcomes)
        values = [None if one is None else list(one.values) for one in scores]
        runs.append({"seed": draw.seed, "scores": values})
        ours, theirs = scores[0], scores[number]
        if number and ours is not None:
            agree += theirs is None or not _worse(measure, ours, theirs)
    found = {"runs": runs, "agree": agree, **agreement(plans, layers)}
    study.note(_REPEATS, {"of": key, "found": found})
    return found


def _worse(measure: Measure, ours: Scores, theirs: Scores) -> bool:
    gain = measure.gain(ours, theirs)
    return -gain.value > SURE * gain.stderr


def _scores(outcomes: Sequence[Outcome]) -> Scores | None:
    values, stderrs, _ = read_outcomes(outcomes)
    if values is None or stderrs is None:
        return None
    return Scores(values, stderrs, per_objective(outcomes))


def agreement(plans: Sequence[Plan], layers: int) -> dict[str, Any]:
    """What plans found on several draws of the samples have in common: layers dropped, sources."""
    gone = [{drop.position for drop in plan.drops} for plan in plans]
    made = [_made(plan, layers) for plan in plans]
    kept = set.intersection(*(set(one) for one in made))
    return {
        "dropped": [len(one) for one in gone],
        "dropped_in_all": len(set.intersection(*gone)),
        "kept_in_all": len(kept),
        "alike_in_all": sum(len({one[position] for one in made}) == 1 for position in kept),
        "pairs": [
            {"of": [a, b], "dropped": len(gone[a] & gone[b]),
             "alike": sum(made[a][p] == made[b][p] for p in made[a].keys() & made[b].keys())}
            for a, b in combinations(range(len(plans)), 2)
        ],
    }  # fmt: skip


def _made(plan: Plan, layers: int) -> dict[int, frozenset[str]]:
    """The models that each kept layer is made of, by number: of a stack that of the output."""
    found: dict[int, frozenset[str]] = {}
    for number, slot in enumerate(slots(plan, layers)):
        if slot.dropped == "yes":
            continue
        recipes = [made.recipe for made in slot.made.values()]
        named = (source.model for recipe in recipes for _, source in sources(recipe))
        position = number if slot.position is None else slot.position
        found[position] = frozenset(name for name in named if isinstance(name, str))
    return found
