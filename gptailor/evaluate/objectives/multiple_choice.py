"""`multiple_choice` and `margin`: whether a plan finds the right one of several texts likelier."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

from torch import Tensor

from gptailor.evaluate.forward.requests import Measure, Request
from gptailor.evaluate.objectives.base import (
    Forward,
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    encoded,
    traits_of,
)
from gptailor.evaluate.objectives.datasets import Question, read_questions
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.outcome import Score, mean
from gptailor.plan.faults import listed, nearest
from gptailor.plan.plan import Objective

METRICS: Mapping[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""By what of a choice its log-likelihood is divided, as lm-eval has it: nothing, its characters,
its bytes in UTF-8."""


@final
@dataclass(frozen=True)
class EncodedQuestion:
    """A question in tokens: a request for each choice, what its length is, which one is right."""

    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    gold: int


@dataclass(frozen=True)
class Choices(Forward):
    """Questions, by the log-likelihood of each choice over its length; a sample is a question."""

    samples: tuple[EncodedQuestion, ...]

    @property
    def measure(self) -> Measure:
        """The surprise of each token of a choice."""
        return surprise

    def requests(self, samples: int) -> Sequence[Request]:
        """The choices of the first questions, one after another."""
        return [request for sample in self.samples[:samples] for request in sample.requests]

    @final
    def score(self, results: Sequence[Tensor]) -> Score:
        """The mean over questions."""
        likely = iter([-float(one.double().sum()) for one in results])
        values = []
        for sample in self.samples:
            raw = list(islice(likely, len(sample.requests)))
            if not raw:
                break
            scaled = [log / n for log, n in zip(raw, sample.lengths, strict=True)]
            values.append(self.of(sample, scaled))
        return mean(values)

    @abstractmethod
    def of(self, sample: EncodedQuestion, likelihoods: Sequence[float]) -> float:
        """What a question counts, given its choices' log-likelihoods over their lengths."""


@final
class Accuracy(Choices):
    """The share of questions whose right choice is the likeliest; the first of equal ones is."""

    def of(self, sample: EncodedQuestion, likelihoods: Sequence[float]) -> float:
        """1 or 0."""
        return float(likelihoods.index(max(likelihoods)) == sample.gold)


@final
class Margin(Choices):
    """How much likelier the right choice is than the best other one, in nats a byte."""

    def of(self, sample: EncodedQuestion, likelihoods: Sequence[float]) -> float:
        """Positive where the right choice is the likeliest."""
        others = [log for i, log in enumerate(likelihoods) if i != sample.gold]
        return likelihoods[sample.gold] - max(others)


def prepare_multiple_choice(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """`multiple_choice(file, metric)`. Raises CalibrationError, ObjectiveError for a metric."""
    metric = str(objective.arguments.get("metric", "acc"))
    if metric not in METRICS:
        close = nearest(metric, METRICS) or f"there are {listed(METRICS)}"
        raise ObjectiveError(f"'multiple_choice' has no metric '{metric}': {close}")
    return Accuracy(traits_of(objective), _choices(objective, METRICS[metric], context))


def prepare_margin(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """`margin(file)`. Raises CalibrationError."""
    return Margin(traits_of(objective), _choices(objective, METRICS["acc_bytes"], context))


def _choices(
    objective: Objective, length: Callable[[str], int], context: ObjectiveContext
) -> tuple[EncodedQuestion, ...]:
    """The samples of a file of choices, in the order in which fidelities take them."""

    def encode(row: Question) -> EncodedQuestion:
        requests = tuple(encoder.request(*pair) for pair in row.pairs)
        return EncodedQuestion(requests, tuple(map(length, row.choices)), row.gold)

    path, encoder = context.file(objective), context.encoder
    return encoded(path, context.drawn(read_questions(path)), encode)
