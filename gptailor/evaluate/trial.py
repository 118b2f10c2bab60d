"""One trial: a plan is stitched, run forward, and generates text; each objective scores that.

`run_trials` does this for the `Session` that `eval` and `search` share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from gptailor.evaluate.forward.evaluator import Evaluator, attempt
from gptailor.evaluate.live.content_keys import ModelContents, not_finite
from gptailor.evaluate.live.stitch import Stitched, Stitcher
from gptailor.evaluate.objectives.base import Forward, PreparedObjective
from gptailor.evaluate.objectives.generate import Generative
from gptailor.evaluate.objectives.size_and_speed import OfPlan, OfPlans
from gptailor.evaluate.race import raced
from gptailor.evaluate.repair import Repairs
from gptailor.evaluate.rival_scores import Race
from gptailor.evaluate.scores import Failure, Outcome
from gptailor.plan.plan import Plan

Outcomes: TypeAlias = tuple[Outcome, ...]
"""A score for each objective, or why there is none."""

Objectives: TypeAlias = Sequence[PreparedObjective | Failure]
"""What plans are scored by; a failure in an objective's place is that of all plans."""

OnStep: TypeAlias = Callable[[int, PreTrainedModel, str], None]
"""Told a plan's number and live model after its forward pass, and again after the text that is made
for an objective, with the objective's name."""


def ignore_steps(number: int, model: PreTrainedModel, objective: str) -> None:
    """Ignore a step of a trial."""


def run_trials(  # noqa: PLR0913 (what a trial is of, and who hears of it)
    repairs: Repairs,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    objectives: Objectives,
    samples: int | None = None,
    *,
    on_step: OnStep = ignore_steps,
    race: Race | None = None,
    of_plans: OfPlans | None = None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score closed plans by the first samples of all objectives: each as soon as it is there.

    Yields the plan's number, and a score or a failure for each objective. Plans that begin alike
    run one after another, and share layers and hidden states. In a `race` one that has lost has
    scores of the samples that this took. What needs no samples is asked `of_plans`.
    """
    read = [one for one in objectives if not isinstance(one, OfPlan)]
    if len(read) == len(objectives):
        yield from _read_trials(repairs, evaluator, plans, read, samples, on_step, race)
        return
    found: Iterable[tuple[int, Outcomes]] = ((number, ()) for number in range(len(plans)))
    if read:
        found = _read_trials(repairs, evaluator, plans, read, samples, on_step, None)
    assert of_plans is not None, "something measures what isn't read"
    for number, outcomes in found:
        left = iter(outcomes)
        yield (
            number,
            tuple(
                attempt(partial(of_plans, number, one)) if isinstance(one, OfPlan) else next(left)
                for one in objectives
            ),
        )


def _read_trials(  # noqa: PLR0913, PLR0917 (as above)
    repairs: Repairs,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score plans by what they say of texts."""
    resolved = map(repairs.stitcher.table.resolved, plans)
    contents = {n: attempt(partial(repairs.contents, plan)) for n, plan in enumerate(resolved)}
    yield from failures(contents, objectives)
    stitcher = repairs.stitcher
    made = {number: one for number, one in contents.items() if isinstance(one, ModelContents)}
    for number, outcomes in _live_trials(
        stitcher, evaluator, made, objectives, samples, on_step, race
    ):
        yield number, _explained(outcomes, objectives, made[number])


def _explained(outcomes: Outcomes, objectives: Objectives, contents: ModelContents) -> Outcomes:
    """Name the objective whose predictions are NaN, and the stored tensor that is not finite."""
    if not any(isinstance(one, Failure) and one.reason == "nan" for one in outcomes):
        return outcomes
    why = not_finite(contents) or "all stored tensors are finite"
    return tuple(
        Failure("nan", f"{objective.name}: {outcome.message}; {why}")
        if isinstance(outcome, Failure)
        and outcome.reason == "nan"
        and not isinstance(objective, Failure)
        else outcome
        for outcome, objective in zip(outcomes, objectives, strict=True)
    )


def _live_trials(  # noqa: PLR0913, PLR0917 (as above)
    stitcher: Stitcher,
    evaluator: Evaluator,
    made: Mapping[int, ModelContents],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score plans whose pieces are known."""
    forward = [one for one in objectives if isinstance(one, Forward)]
    numbers = list(made)
    for group in stitcher.together(list(made.values())):
        stitched = {numbers[at]: attempt(partial(stitcher.live, made[numbers[at]])) for at in group}
        yield from failures(stitched, objectives)
        live = {number: one for number, one in stitched.items() if isinstance(one, Stitched)}
        if race is not None and samples is not None and len(forward) == len(objectives):
            yield from raced(evaluator, live, forward, samples, race)
            live.clear()
        for number, measured in _forward(evaluator, live, objectives, samples):
            done = partial(on_step, number)
            yield number, _outcomes(objectives, live[number].model, samples, measured, done)
        del stitched, live  # before the next ones are made


def failures(found: Mapping[int, object], objectives: Objectives) -> Iterator[tuple[int, Outcomes]]:
    """The outcomes of plans of which there is no live model."""
    for number, why in found.items():
        if isinstance(why, Failure):
            yield number, tuple(one if isinstance(one, Failure) else why for one in objectives)


def _forward(
    evaluator: Evaluator, live: Mapping[int, Stitched], objectives: Objectives, samples: int | None
) -> Iterator[tuple[int, Mapping[int, Sequence[Tensor] | Failure]]]:
    """What one forward pass of each plan measures for each objective, by their numbers.

    After a failure each objective's work runs alone, to know whose it is.
    """
    works = {n: one.work(samples) for n, one in enumerate(objectives) if isinstance(one, Forward)}
    if not works:
        yield from ((number, {}) for number in live)
        return
    numbers = list(live)
    for at, result in evaluator.run_all(list(live.values()), list(works.values())):
        if not isinstance(result, Failure):
            yield numbers[at], dict(zip(works, result, strict=True))
        elif len(works) == 1:
            yield numbers[at], dict.fromkeys(works, result)
        else:
            alone = {n: evaluator.run(live[numbers[at]], [work]) for n, work in works.items()}
            yield numbers[at], {n: r if isinstance(r, Failure) else r[0] for n, r in alone.items()}


def _outcomes(
    objectives: Objectives,
    model: PreTrainedModel,
    samples: int | None,
    measured: Mapping[int, Sequence[Tensor] | Failure],
    done: Callable[[PreTrainedModel, str], None],
) -> Outcomes:
    done(model, "")
    outcomes: list[Outcome] = []
    for number, objective in enumerate(objectives):
        if isinstance(objective, Failure):
            outcomes.append(objective)
        elif isinstance(objective, Generative):
            outcomes.append(attempt(partial(objective.judge, model, samples)))
            done(model, objective.name)
        else:
            assert isinstance(objective, Forward)
            found = measured[number]
            score = objective.score
            outcomes.append(found if isinstance(found, Failure) else attempt(partial(score, found)))
    return tuple(outcomes)
