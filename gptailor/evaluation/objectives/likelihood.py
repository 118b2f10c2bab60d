"""Objectives by the likelihood of text.

`nll` and `perplexity`: how well a plan predicts text. `multiple_choice` and `margin`: a plan's
likelihood of the right text among several.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.datasets import Exchange, Passage, Question, joined_text, read_rows
from gptailor.evaluation.forward.requests import Measure, Request
from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.tokens import EncodingError, TokenEncoder
from gptailor.evaluation.scores import PerSample, Score, mean
from gptailor.plan.faults import listed, nearest
from gptailor.plan.plan import Objective

WINDOW = 512
"""Tokens of a window of text, special ones included, unless the model takes fewer."""
_PIECE = 2048
"""Bytes of a piece of text where losses count by bytes, unless a model takes fewer tokens."""
_OPENINGS = 4
"""Room for the special tokens that open a text, in any tokenizer."""
_LONGER = "give a longer text"
_SHORTEST = 64
"""Bytes of the shortest piece at the end of a text."""


@final
@dataclass(frozen=True)
class PerToken(base.Forward):
    """The mean of a measure over predicted tokens, or over their bytes; a sample is one request.

    `measure_of` returns the measure for the samples' requests. The score is the mean times `scale`,
    or with `by_exponential` e to that.
    """

    samples: tuple[Request, ...]
    measure_of: Callable[[Sequence[Request]], Measure]
    scale: float = 1.0
    by_exponential: bool = False

    @cached_property
    def measure(self) -> Measure:
        """The numbers of each prediction. The first access may run a reference."""
        return self.measure_of(self.samples)

    def requests(self, samples: int) -> Sequence[Request]:
        """Return the first windows or rows."""
        return self.samples[:samples]

    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the mean over tokens or bytes, with its error over windows or rows.

        The error of an exponential is the delta method's.
        """
        sums = tuple(float(tensor.double().sum()) * self.scale for tensor in results)
        pairs = zip(self.samples, results, strict=False)
        counts = tuple(len(r) if s.size is None else s.size for s, r in pairs)
        return PerSample(sums, counts, self.by_exponential).score()


def surprise(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], numbers: Int64[Tensor, " n"]
) -> Float[Tensor, " n 1"]:
    """Return minus the logarithm of the probability of each target token, in nats."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")[:, None]


def _surprise_of(requests: Sequence[Request]) -> Measure:
    """Return the surprise of each token, whatever the requests are."""
    return surprise


# ----------------------------------------------------------------------------------------- samples


def piece_bytes(positions: Iterable[int | None]) -> int:
    """Return the bytes of a piece of text that all models take, by their largest positions.

    A byte has at most one token, and the last one is only predicted.
    """
    return min([_PIECE, *(most + 1 - _OPENINGS for most in positions if most is not None)])


def prepare_nll(
    objective: Objective, context: base.ObjectiveContext, *, perplexity: bool = False
) -> base.PreparedObjective:
    """Prepare `nll(file)`, or `perplexity(file)`.

    `nll` is in nats a token, or in bits a byte, and `perplexity` e to the nats a token or a byte.
    Raises CalibrationError.
    """
    in_bits = context.piece_bytes is not None and not perplexity
    scale, read = 1 / math.log(2) if in_bits else 1.0, texts(objective, context)
    return PerToken(*base.traits_of(objective), read, _surprise_of, scale, perplexity)


def texts(objective: Objective, context: base.ObjectiveContext) -> tuple[Request, ...]:
    """Return the samples of a file of text, in the order in which fidelities take them.

    A text is cut into windows of `WINDOW` tokens, or as many as the model takes. Each window begins
    with the tokenizer's special tokens for the beginning of a text. A shorter window at the end of
    a file that isn't JSON lines is dropped; a row keeps its shorter window. A row with `prompt` and
    `response`, or `context` and `answer`, is one sample, and only the response is predicted.

    Where losses count by bytes, a text is cut into pieces of bytes, the same ones in any
    vocabulary, each predicted from its beginning on.

    Raises CalibrationError.
    """
    path = context.file(objective)
    encode = partial(_requests, context.encoder, min(WINDOW, context.encoder.positions or WINDOW))
    if context.piece_bytes is not None:
        encode = partial(_sized_requests, context.encoder, context.piece_bytes)
    return tuple(context.drawn(list(chain(*base.encoded(path, read_rows(path, "text"), encode)))))


def _requests(encoder: TokenEncoder, window: int, row: Passage | Exchange) -> list[Request]:
    if isinstance(row, Exchange):
        return [_answer_request(encoder, row)]
    tokens = encoder.plain(row.text)
    room = window - len(encoder.opening)
    if row.line is None and len(tokens) < room:
        raise EncodingError(
            f"the text has {len(tokens)} tokens, fewer than the window of {room}", _LONGER
        )
    least = room if row.line is None else 2 - bool(encoder.opening)
    pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
    first = max(1, len(encoder.opening))
    requests = [Request(encoder.opening + piece, first) for piece in pieces if len(piece) >= least]
    if not requests:
        raise EncodingError(f"the text has {len(tokens)} tokens, too few to predict one", _LONGER)
    return requests


def _answer_request(encoder: TokenEncoder, row: Exchange) -> Request:
    """Return the request of a row's answer. Raises EncodingError."""
    try:
        return encoder.request(row.context, joined_text(row.context, row.continuation))
    except EncodingError as error:
        help_ = error.help and 'shorten the row, or write it as {"text": "…"}, which is split'
        raise EncodingError(str(error), help_) from None


def _sized_requests(encoder: TokenEncoder, longest: int, row: Passage | Exchange) -> list[Request]:
    """Return the requests of a row with the bytes that each predicts, in any vocabulary alike."""
    if isinstance(row, Exchange):
        request = _answer_request(encoder, row)
        continuation = joined_text(row.context, row.continuation)
        size = len((row.context + continuation).encode()) - len(row.context.rstrip().encode())
        return [replace(request, size=size)]
    opening = encoder.opening or (() if encoder.prefix is None else (encoder.prefix,))
    if not opening:
        raise EncodingError("the tokenizer has no token before a text, so bytes can't be counted")
    pieces = [*_pieces(row.text, longest)]
    requests = [Request(opening + encoder.plain(text), len(opening), len(text.encode()))
                for text in pieces]  # fmt: skip
    most = max(len(request.tokens) for request in requests)
    if encoder.positions is not None and most > encoder.positions + 1:
        raise EncodingError(f"{longest} bytes have {most} tokens, more than {encoder.positions}")
    return requests


def _pieces(text: str, longest: int) -> Iterator[str]:
    """Yield the text in pieces of at most this many bytes, cut before a blank where there is one.

    A short piece at the end is left out, unless it is the whole text.
    """
    start = 0
    while start < len(text):
        piece = text[start : start + longest].encode()[:longest].decode(errors="ignore")
        if start + len(piece) < len(text):
            at = max(piece.rfind(" ", len(piece) // 2), piece.rfind("\n", len(piece) // 2))
            piece = piece[:at] if at > 0 else piece
        if start and len(piece.encode()) < _SHORTEST:
            return
        yield piece
        start += len(piece)


# ------------------------------------------------------------------------------------------ choices


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
