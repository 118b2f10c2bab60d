"""Trials: stitch a plan, run it forward, generate text, and score the results.

`run_trials` does this for the `Session` that `eval` and `search` share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.evaluator import Evaluator, attempt
from gptailor.evaluation.live.content_keys import ModelContents, not_finite
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.objectives.base import Forward, PreparedObjective
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.size_and_speed import OfPlan, OfPlans
from gptailor.evaluation.race import raced
from gptailor.evaluation.rival_scores import Race
from gptailor.evaluation.scores import Failure, Outcome
from gptailor.plan.plan import Plan

Outcomes: TypeAlias = tuple[Outcome, ...]
"""A score or a failure for each objective."""

Objectives: TypeAlias = Sequence[PreparedObjective | Failure]
"""Objectives that score plans; a failure in an objective's place applies to all plans."""

OnStep: TypeAlias = Callable[[int, PreTrainedModel, str], None]
"""Callback with a plan's number and live model after its forward pass, and again with an
objective's name after generating the text for it."""


def ignore_steps(number: int, model: PreTrainedModel, objective: str) -> None:
    """Ignore a step of a trial."""


def run_trials(  # noqa: PLR0913 (a trial's parts and callbacks)
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
    """Score closed plans by the first samples of all objectives, and yield each finished plan.

    Yields the plan's number, and a score or a failure for each objective. Plans that begin alike
    run one after another, and share layers and hidden states. In a `race` a losing plan has scores
    of the samples that showed its loss. `of_plans` scores objectives that need no samples.
    """
    read = [objective for objective in objectives if not isinstance(objective, OfPlan)]
    if len(read) == len(objectives):
        yield from _read_trials(repairs, evaluator, plans, read, samples, on_step, race)
        return
    trials: Iterable[tuple[int, Outcomes]] = ((number, ()) for number in range(len(plans)))
    if read:
        trials = _read_trials(repairs, evaluator, plans, read, samples, on_step, None)
    assert of_plans is not None, "something measures what isn't read"
    for number, outcomes in trials:
        remaining = iter(outcomes)
        merged = (
            attempt(partial(of_plans, number, objective))
            if isinstance(objective, OfPlan)
            else next(remaining)
            for objective in objectives
        )
        yield number, tuple(merged)


def _read_trials(  # noqa: PLR0913, PLR0917 (as above)
    repairs: Repairs,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score plans by objectives that need samples."""
    resolved = map(repairs.stitcher.table.resolved, plans)
    attempts = {n: attempt(partial(repairs.contents, plan)) for n, plan in enumerate(resolved)}
    yield from failures(attempts, objectives)
    stitcher = repairs.stitcher
    contents = {n: result for n, result in attempts.items() if isinstance(result, ModelContents)}
    for number, outcomes in _live_trials(
        stitcher, evaluator, contents, objectives, samples, on_step, race
    ):
        yield number, _explained(outcomes, objectives, contents[number])


def _explained(outcomes: Outcomes, objectives: Objectives, contents: ModelContents) -> Outcomes:
    """Name the objective whose predictions are NaN, and the stored tensor that is not finite."""
    if not any(isinstance(outcome, Failure) and outcome.reason == "nan" for outcome in outcomes):
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
    contents: Mapping[int, ModelContents],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score the live models of plans' contents."""
    forward = [objective for objective in objectives if isinstance(objective, Forward)]
    numbers = list(contents)
    for group in stitcher.together(list(contents.values())):
        stitched = {
            number: attempt(partial(stitcher.live, contents[number]))
            for number in (numbers[at] for at in group)
        }
        yield from failures(stitched, objectives)
        live = {n: result for n, result in stitched.items() if isinstance(result, Stitched)}
        if race is not None and samples is not None and len(forward) == len(objectives):
            yield from raced(evaluator, live, forward, samples, race)
            live.clear()
        for number, measured in _forward(evaluator, live, objectives, samples):
            done = partial(on_step, number)
            yield number, _outcomes(objectives, live[number].model, samples, measured, done)
        del stitched, live  # before the next group is stitched


def failures(
    results: Mapping[int, object], objectives: Objectives
) -> Iterator[tuple[int, Outcomes]]:
    """Yield the outcomes of plans with a failure in place of a live model."""
    for number, result in results.items():
        if isinstance(result, Failure):
            outcomes = (
                objective if isinstance(objective, Failure) else result for objective in objectives
            )
            yield number, tuple(outcomes)


def _forward(
    evaluator: Evaluator, live: Mapping[int, Stitched], objectives: Objectives, samples: int | None
) -> Iterator[tuple[int, Mapping[int, Sequence[Tensor] | Failure]]]:
    """Yield each plan's number and its forward pass's measurements, by objectives' numbers.

    After a failure each objective's work runs alone, to find the one that fails.
    """
    works = {
        n: objective.work(samples)
        for n, objective in enumerate(objectives)
        if isinstance(objective, Forward)
    }
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
            outcomes.append(attempt(partial(objective.evaluate, model, samples)))
            done(model, objective.name)
        else:
            assert isinstance(objective, Forward)
            result = measured[number]
            if isinstance(result, Failure):
                outcomes.append(result)
            else:
                outcomes.append(attempt(partial(objective.score, result)))
    return tuple(outcomes)
