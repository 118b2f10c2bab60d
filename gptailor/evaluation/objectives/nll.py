"""`nll` and `perplexity`: how well a plan predicts text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import Exchange, Passage, joined_text, read_texts
from gptailor.evaluation.forward.requests import Measure, Request, Rows
from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.tokens import EncodingError, TokenEncoder
from gptailor.evaluation.scores import Score, exponential, ratio
from gptailor.plan.plan import Objective

WINDOW = 512
"""Tokens of a window of text, special ones included, unless the model takes fewer."""


@dataclass(frozen=True)
class PerToken(base.Forward):
    """The mean of a measure over predicted tokens; a sample is one request."""

    samples: tuple[Request, ...]

    def requests(self, samples: int) -> Sequence[Request]:
        """Return the first windows or rows."""
        return self.samples[:samples]

    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the mean over tokens, with its error over windows or rows."""
        return ratio([float(tensor.double().sum()) for tensor in results], list(map(len, results)))


class NegativeLogLikelihood(PerToken):
    """Nats a token."""

    @property
    def measure(self) -> Measure:
        """The surprise of each token."""
        return surprise


@final
class Perplexity(NegativeLogLikelihood):
    """e to the nats a token; the error by the delta method."""

    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the exponential of the mean over tokens."""
        return exponential(super().score(results))


def surprise(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
) -> Float[Tensor, " n 1"]:
    """Return minus the logarithm of the probability of each target token, in nats."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")[:, None]


# ----------------------------------------------------------------------------------------- samples


def prepare_nll(
    kind: type[PerToken], objective: Objective, context: base.ObjectiveContext
) -> base.PreparedObjective:
    """Prepare `nll(file)` or `perplexity(file)`, by `kind`. Raises CalibrationError."""
    return kind(*base.traits_of(objective), texts(objective, context))


def texts(objective: Objective, context: base.ObjectiveContext) -> tuple[Request, ...]:
    """Return the samples of a file of text, in the order in which fidelities take them.

    A text is cut into windows of `WINDOW` tokens, or as many as the model takes. Each window begins
    with the tokenizer's special tokens for the beginning of a text. A shorter window at the end of
    a file that isn't JSON lines is dropped; a row keeps its shorter window. A row with `prompt` and
    `response`, or `context` and `answer`, is one sample, and only the response is predicted.

    Raises CalibrationError.
    """
    path = context.file(objective)
    window = min(WINDOW, context.positions or WINDOW)
    encode = partial(_requests, context.encoder, window)
    return tuple(context.drawn(list(chain(*base.encoded(path, read_texts(path), encode)))))


def _requests(encoder: TokenEncoder, window: int, row: Passage | Exchange) -> list[Request]:
    if isinstance(row, Exchange):
        return [encoder.request(row.context, joined_text(row.context, row.continuation))]
    tokens = encoder.plain(row.text)
    room = window - len(encoder.opening)
    if row.line is None and len(tokens) < room:
        raise EncodingError(f"the text has {len(tokens)} tokens, fewer than a window of {room}")
    least = room if row.line is None else 2 - bool(encoder.opening)
    pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
    requests = [Request(encoder.opening + piece, 1) for piece in pieces if len(piece) >= least]
    if not requests:
        raise EncodingError(f"the text has {len(tokens)} tokens, and none to predict")
    return requests
