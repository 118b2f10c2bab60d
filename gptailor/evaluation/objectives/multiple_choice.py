"""`multiple_choice` and `margin`: a plan's likelihood of the right text among several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import final

from torch import Tensor

from gptailor.checkpoint.datasets import Question, read_rows
from gptailor.evaluation.forward.requests import Measure, Request
from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.nll import surprise
from gptailor.evaluation.scores import Score, mean
from gptailor.plan.faults import listed, nearest
from gptailor.plan.plan import Objective

METRICS: Mapping[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""lm-eval's divisors of a choice's log-likelihood: 1, its characters, or its bytes in UTF-8."""


@final
@dataclass(frozen=True)
class EncodedQuestion:
    """A question in tokens: a request and a length for each choice, and the right choice."""

    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    gold: int


@final
@dataclass(frozen=True)
class Choices(base.Forward):
    """Questions, by the log-likelihood of each choice over its length; a sample is a question.

    `counts` returns a question's value from the number of its right choice and the scaled
    log-likelihoods.
    """

    samples: tuple[EncodedQuestion, ...]
    counts: Callable[[int, Sequence[float]], float]

    @property
    def measure(self) -> Measure:
        """The surprise of each token of a choice."""
        return surprise

    def requests(self, samples: int) -> Sequence[Request]:
        """Return the choices of the first questions, question after question."""
        return [request for sample in self.samples[:samples] for request in sample.requests]

    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the mean over questions."""
        likely = iter([-float(tensor.double().sum()) for tensor in results])
        values = []
        for sample in self.samples:
            raw = list(islice(likely, len(sample.requests)))
            if not raw:
                break
            scaled = [log / n for log, n in zip(raw, sample.lengths, strict=True)]
            values.append(self.counts(sample.gold, scaled))
        return mean(values)


def _accuracy(gold: int, likelihoods: Sequence[float]) -> float:
    """Return 1 if the right choice is the first likeliest choice, else 0."""
    return float(likelihoods.index(max(likelihoods)) == gold)


def _margin(gold: int, likelihoods: Sequence[float]) -> float:
    """Return how much likelier the right choice is than the best wrong one, in nats a byte."""
    return likelihoods[gold] - max(log for i, log in enumerate(likelihoods) if i != gold)


def prepare_multiple_choice(
    objective: Objective, context: base.ObjectiveContext
) -> base.PreparedObjective:
    """Prepare `multiple_choice(file, metric)`.

    Raises CalibrationError, and ObjectiveError for an unknown metric.
    """
    metric = str(objective.arguments.get("metric", "acc"))
    if metric not in METRICS:
        close = nearest(metric, METRICS) or f"the metrics are {listed(METRICS)}"
        raise base.ObjectiveError(f"'multiple_choice' has no metric '{metric}': {close}")
    return _prepare_choices(METRICS[metric], _accuracy, objective, context)


def _prepare_choices(
    length: Callable[[str], int],
    counts: Callable[[int, Sequence[float]], float],
    objective: Objective,
    context: base.ObjectiveContext,
) -> base.PreparedObjective:
    """Prepare an objective on a file of choices, by a choice's length. Raises CalibrationError."""

    def encode(row: Question) -> EncodedQuestion:
        requests = tuple(encoder.request(*pair) for pair in row.pairs)
        return EncodedQuestion(requests, tuple(map(length, row.choices)), row.gold)

    path, encoder = context.file(objective), context.encoder
    questions = base.encoded(path, context.drawn(read_rows(path, "choice")), encode)
    return Choices(*base.traits_of(objective), questions, counts)


prepare_margin = partial(_prepare_choices, METRICS["acc_bytes"], _margin)
"""Prepares `margin(file)`, as `_prepare_choices` does."""
