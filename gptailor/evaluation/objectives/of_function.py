"""Objectives of other packages: a function of generated texts, or of logits."""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import Exchange
from gptailor.evaluation.forward.requests import Measure, Request
from gptailor.evaluation.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    traits_of,
)
from gptailor.evaluation.objectives.generate import prepare_rated
from gptailor.evaluation.objectives.likelihood import PerToken, texts
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES, ObjectiveSpec


def _measure_of(spec: ObjectiveSpec, requests: Sequence[Request]) -> Measure:
    """Return the measure of the function's number of each token."""

    def measure(
        logits: Float[Tensor, " n vocab"],
        targets: Int64[Tensor, " n"],
        numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n 1"]:
        return numbers_of(spec, logits, targets)[:, None]

    return measure


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
        read = texts(objective, context)
        return PerToken(*traits_of(objective), read, partial(_measure_of, spec))

    def rating(row: Exchange) -> Callable[[str], float]:
        return partial(number_of, spec, row.context, row.continuation)

    return prepare_rated(rating, objective, context)
