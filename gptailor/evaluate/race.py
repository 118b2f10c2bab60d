"""Racing: a trial that is surely worse than a known plan isn't scored on all its samples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from gptailor.evaluate.forward.evaluator import Evaluator, attempt
from gptailor.evaluate.live.stitch import Stitched
from gptailor.evaluate.objectives.base import Forward
from gptailor.evaluate.rival_scores import Race, race_counts
from gptailor.evaluate.scores import Failure, Outcome, Score


def raced(
    evaluator: Evaluator,
    live: Mapping[int, Stitched],
    objectives: Sequence[Forward],
    samples: int,
    race: Race,
) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    """The outcomes of plans that run against others: on all samples, or on those it took.

    All run their first samples, then those that are left the next ones: plans that begin alike
    share hidden states as ever.
    """
    works = [one.work(samples) for one in objectives]
    found: dict[int, list[list[Tensor]]] = {number: [[] for _ in works] for number in live}
    for part, count in enumerate((*race_counts(samples), samples)):
        if not count:
            continue
        left = list(found)
        of_part = [work.parts[part] for work in works]
        for at, result in evaluator.run_all([live[number] for number in left], of_part):
            number = left[at]
            if isinstance(result, Failure):
                del found[number]
                yield number, (result,) * len(objectives)
                continue
            for mine, more in zip(found[number], result, strict=True):
                mine.extend(more)
            outcomes = tuple(
                attempt(partial(one.score, mine))
                for one, mine in zip(objectives, found[number], strict=True)
            )
            failed = any(isinstance(one, Failure) for one in outcomes)
            if count == samples or failed or _lost(race, outcomes):
                del found[number]
                yield number, outcomes


def _lost(race: Race, outcomes: Sequence[Outcome]) -> bool:
    each = [one.each for one in outcomes if isinstance(one, Score)]
    known = tuple(one for one in each if one is not None)
    return len(known) == len(outcomes) and race.lost(known)
