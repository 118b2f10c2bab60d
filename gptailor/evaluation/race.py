"""Racing: a trial that is surely worse than a known plan is scored on fewer samples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from gptailor.evaluation.forward.evaluator import Evaluator, attempt
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.objectives.base import Forward
from gptailor.evaluation.rival_scores import Race, race_counts
from gptailor.evaluation.scores import Failure, Outcome, Score


def raced(
    evaluator: Evaluator,
    live: Mapping[int, Stitched],
    objectives: Sequence[Forward],
    samples: int,
    race: Race,
) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    """Yield the outcomes of plans that run against rivals, on all samples or on the first ones.

    All plans run on their first samples. Then the plans that have not lost run on the next samples.
    Plans that begin alike share hidden states.
    """
    works = [objective.work(samples) for objective in objectives]
    tensors: dict[int, list[list[Tensor]]] = {number: [[] for _ in works] for number in live}
    for part, count in enumerate((*race_counts(samples), samples)):
        if not count:
            continue
        running = list(tensors)
        of_part = [work.parts[part] for work in works]
        for at, result in evaluator.run_all([live[number] for number in running], of_part):
            number = running[at]
            if isinstance(result, Failure):
                del tensors[number]
                yield number, (result,) * len(objectives)
                continue
            for earlier, more in zip(tensors[number], result, strict=True):
                earlier.extend(more)
            outcomes = tuple(
                attempt(partial(objective.score, results))
                for objective, results in zip(objectives, tensors[number], strict=True)
            )
            failed = any(isinstance(outcome, Failure) for outcome in outcomes)
            if count == samples or failed or _lost(race, outcomes):
                del tensors[number]
                yield number, outcomes


def _lost(race: Race, outcomes: Sequence[Outcome]) -> bool:
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
    per_sample = tuple(score.each for score in scores if score.each is not None)
    return len(per_sample) == len(outcomes) and race.lost(per_sample)
