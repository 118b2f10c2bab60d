"""Objectives of other packages: a function of generated texts, or of logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import Exchange, read_exchanges
from gptailor.evaluation.forward.requests import Measure, Rows
from gptailor.evaluation.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    encoded,
    traits_of,
)
from gptailor.evaluation.objectives.generate import Generative, prompt_of
from gptailor.evaluation.objectives.nll import PerToken, texts
from gptailor.evaluation.objectives.tokens import Prompt, TokenEncoder
from gptailor.evaluation.scores import Score, mean
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES, ObjectiveSpec


@final
@dataclass(frozen=True)
class OfTexts(Generative):
    """The mean of `function(context, answer, text)` over the texts that a plan generates."""

    samples: tuple[tuple[Exchange, Prompt], ...]
    spec: ObjectiveSpec

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the first contexts."""
        return [prompt for _, prompt in self.samples[:samples]]

    def score(self, texts: Sequence[str]) -> Score:
        """Return the mean over the first samples. Raises ObjectiveError for a failing function."""
        pairs = zip(self.samples[: len(texts)], texts, strict=True)
        return mean(
            [number_of(self.spec, row.context, row.continuation, text) for (row, _), text in pairs]
        )


@final
@dataclass(frozen=True)
class OfLogits(PerToken):
    """The mean of `function(logits, targets)` over the predicted tokens of a text."""

    spec: ObjectiveSpec

    @property
    def measure(self) -> Measure:
        """The function's number of each token."""
        return partial(_measured, self.spec)


def _measured(
    spec: ObjectiveSpec, logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
) -> Float[Tensor, " n 1"]:
    return numbers_of(spec, logits, targets)[:, None]


def number_of(spec: ObjectiveSpec, context: str, answer: str, text: str) -> float:
    """Return the function's number of a text. Raises ObjectiveError."""
    value = _called(spec, context, answer, text)
    if not isinstance(value, Real):
        raise _failed(spec, f"returned {value!r}, expected a number")
    return float(value)


def numbers_of(
    spec: ObjectiveSpec, logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the function's number of each token. Raises ObjectiveError."""
    values = _called(spec, logits, targets)
    if not isinstance(values, Tensor) or values.shape != targets.shape:
        got = [*values.shape] if isinstance(values, Tensor) else type(values).__name__
        raise _failed(spec, f"returned {got}, expected a tensor of the shape {[*targets.shape]}")
    return values.to(torch.float32)


def _called(spec: ObjectiveSpec, *arguments: object) -> object:
    assert spec.function is not None
    try:
        return spec.function(*arguments)
    except Exception as error:
        raise _failed(spec, f"raised {type(error).__name__}: {error}") from error


def _failed(spec: ObjectiveSpec, words: str) -> ObjectiveError:
    return ObjectiveError(f"the objective '{spec.name}' of {OBJECTIVES.package(spec.name)} {words}")


def prepare_of_function(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """Prepare an objective of another package. Raises CalibrationError."""
    spec = OBJECTIVES[objective.name]
    if spec.arguments[0].rows == "text":
        return OfLogits(*traits_of(objective), texts(objective, context), spec)
    rows = context.drawn(read_exchanges(context.file(objective)))
    pairs = encoded(context.file(objective), rows, partial(_case, context.encoder))
    return OfTexts(*traits_of(objective), pairs, context.encoder, spec)


def _case(encoder: TokenEncoder, row: Exchange) -> tuple[Exchange, Prompt]:
    return row, prompt_of(encoder, row)
