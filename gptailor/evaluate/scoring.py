"""Scores of a live plan: of what a forward pass measured, and of text that it makes.

What goes wrong with a plan is a `Failure` beside the scores, whatever it was.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from gptailor.evaluate.forward.evaluator import Evaluator, failure
from gptailor.evaluate.forward.requests import LiveModel, Results, Work
from gptailor.evaluate.objectives import Forward
from gptailor.evaluate.outcome import Failure, Outcome, Score
from gptailor.plan.faults import TailorError

AskedWorks: TypeAlias = Mapping[int, tuple[Forward, Work]]
"""What a forward pass is to measure: objectives by their numbers, each with its work."""


def scored(
    evaluator: Evaluator, live: LiveModel, asked: AskedWorks, result: Results | Failure
) -> dict[int, Outcome]:
    """A score for each objective; after a failure each is run alone, to know whose it is."""
    if isinstance(result, Failure):
        if len(asked) == 1:
            return dict.fromkeys(asked, result)
        return {number: _alone(evaluator, live, *one) for number, one in asked.items()}
    pairs = zip(asked.items(), result, strict=True)
    return {
        number: guarded(lambda o=objective, f=found: o.score(f))  # type: ignore[misc]
        for (number, (objective, _)), found in pairs
    }


def _alone(evaluator: Evaluator, live: LiveModel, objective: Forward, work: Work) -> Outcome:
    found = evaluator.run(live, [work])
    return found if isinstance(found, Failure) else guarded(lambda: objective.score(found[0]))


def guarded(do: Callable[[], Score]) -> Outcome:
    """The score, or why there is none."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001 (a target's failure is a value, whatever it was)
        return failure(error)


def unstitched(error: Exception) -> Failure:
    """Why a plan has no live model; what we say ourselves needs no name of an exception."""
    return Failure("error", str(error)) if isinstance(error, TailorError) else failure(error)
