"""`generate`: the share of contexts that a plan continues with the right answer."""

import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gptailor.checkpoint.datasets import Exchange, joined_text, read_rows
from gptailor.checkpoint.files import quoted
from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.live.template import embeddings
from gptailor.evaluation.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    encoded,
    traits_of,
)
from gptailor.evaluation.objectives.tokens import EncodingError, Prompt, TokenEncoder
from gptailor.evaluation.scores import NotANumberError, Score, mean
from gptailor.plan.plan import Objective

_BATCH_TOKENS = 8192
"""Tokens of a batch during generation, padding included."""


@dataclass(frozen=True)
class Generative(PreparedObjective):
    """An objective that needs the model to generate text."""

    encoder: TokenEncoder

    @abstractmethod
    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the prompts of the first samples, or of all for None."""

    @abstractmethod
    def rate(self, made: Sequence["Continuation"]) -> Score:
        """Return the score of the texts that the model generated after the first `prompts`."""

    @final
    def requests(self, samples: int) -> Sequence[Request]:
        """Return the prompts; all their tokens but the first are predicted."""
        prompts = self.prompts(samples)
        return [Request(prompt.tokens, 1) for prompt in prompts if len(prompt.tokens) > 1]

    def evaluate(self, model: PreTrainedModel, samples: int | None = None) -> Score:
        """Return the score of a model on the first samples."""
        prompts = self.prompts(samples)
        return self.rate(continued(model, self.encoder.tokenizer, prompts, _BATCH_TOKENS))


class GenerativeTexts(Generative):
    """A generative objective that reads texts alone, up to the first stop of their prompts."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> Score:
        """Return the score of the texts that the model generated after the first `prompts`."""

    @final
    def rate(self, made: Sequence["Continuation"]) -> Score:
        """Return the score of the texts of continuations."""
        prompts = self.prompts(None)[: len(made)]
        return self.score(_texts(self.encoder.tokenizer, prompts, made))


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_tokens: int,
) -> list[str]:
    """Generate a text after each prompt, with the likeliest token at each step.

    The text ends before the first stop, at the end token, or after `most` tokens. Prompts of like
    length run together, padded on the left. A batch holds at most `batch_tokens` tokens, including
    the tokens to be generated. Only the end tokens of the model's own generation settings count.
    """
    return _texts(tokenizer, prompts, continued(model, tokenizer, prompts, batch_tokens))


def _texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], made: Sequence["Continuation"]
) -> list[str]:
    """Return the texts of continuations, each up to the first stop of its prompt."""
    texts = []
    for prompt, continuation in zip(prompts, made, strict=True):
        text = str(tokenizer.decode([*continuation.tokens], skip_special_tokens=True))
        stops = [at for stop in prompt.stops if (at := text.find(stop)) >= 0]
        texts.append(text[: min(stops, default=None)])
    return texts


@final
@dataclass(frozen=True)
class Continuation:
    """The tokens that a model generated after a prompt, and the end token behind them, if any."""

    tokens: tuple[int, ...]
    end: int | None


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_tokens: int,
    *,
    drawing: Callable[[Sequence[int]], LogitsProcessor] | None = None,
) -> list[Continuation]:
    """Generate tokens after each prompt as `greedy` does, up to the first stop or beyond it.

    `drawing` returns the processor that draws the tokens of a batch, by its prompts' numbers.
    """
    ordered = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
    made: dict[int, Continuation] = {}
    with torch.no_grad(), _settings(model, tokenizer) as settings:
        for batch in _batches(ordered, prompts, batch_tokens):
            drawn = drawing(batch) if drawing else None
            rows = _decode(model, tokenizer, [prompts[i] for i in batch], settings, drawn)
            made |= zip(batch, rows, strict=True)
    return [made[number] for number in range(len(prompts))]


@final
class _RefuseNaN(LogitsProcessor):
    """Raises NotANumberError for predictions that are NaN."""

    def __call__(
        self, input_ids: Int64[Tensor, " batch length"], scores: Float[Tensor, " batch vocab"]
    ) -> Float[Tensor, " batch vocab"]:
        if bool(scores.isnan().any()):
            raise NotANumberError("the model's predictions are NaN")
        return scores


@final
@dataclass(eq=False)
class _Stop(StoppingCriteria):
    """Ends a row once its new text holds a stop, or has all its tokens."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    width: int

    def __call__(
        self, input_ids: Int64[Tensor, " batch length"], scores: Any, **_: Any
    ) -> Bool[Tensor, " batch"]:
        done = []
        for prompt, row in zip(self.prompts, input_ids[:, self.width :].tolist(), strict=True):
            full = len(row) >= prompt.most
            read = prompt.stops and not full
            text = str(self.tokenizer.decode(row, skip_special_tokens=True)) if read else ""
            done.append(full or any(stop in text for stop in prompt.stops))
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[GenerationConfig]:
    own = model.generation_config
    end = tokenizer.eos_token_id if own is None else own.eos_token_id or tokenizer.eos_token_id
    ends = [] if end is None else list(end) if isinstance(end, list | tuple) else [end]
    for number in ends:
        if not isinstance(number, int) or not 0 <= number < 2**63:
            message = f"expected token numbers as 'eos_token_id', got {quoted(str(number))}"
            raise ObjectiveError(f"{message}; correct generation_config.json of the model")
    known = range(len(embeddings(model)))
    pads = (tokenizer.pad_token_id, *ends, 0)
    settings: GenerationConfig = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=ends or None,
        pad_token_id=next(token for token in pads if token in known),
    )
    model.generation_config = settings  # unset settings would come from the model's own
    try:
        yield settings
    finally:
        model.generation_config = own


def _batches(
    ordered: Sequence[int], prompts: Sequence[Prompt], batch_tokens: int
) -> Iterator[list[int]]:
    batch: list[int] = []
    most = 0
    for number in ordered:
        longest = prompts[batch[0]].tokens if batch else prompts[number].tokens
        most = max(most, prompts[number].most)
        if batch and (len(batch) + 1) * (len(longest) + most) > batch_tokens:
            yield batch
            batch, most = [], prompts[number].most
        batch.append(number)
    if batch:
        yield batch


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    drawing: LogitsProcessor | None,
) -> list[Continuation]:
    width = max(len(prompt.tokens) for prompt in prompts)
    pad = int(settings.pad_token_id)
    rows = [[pad] * (width - len(p.tokens)) + list(p.tokens) for p in prompts]
    mask = [[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in prompts]
    settings.max_new_tokens = max(prompt.most for prompt in prompts)
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    generated = generate(
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, prompts, width)]),
        logits_processor=LogitsProcessorList([_RefuseNaN(), *([drawing] if drawing else [])]),
    )
    ends = set(settings.eos_token_id or ())
    made = []
    for prompt, row in zip(prompts, generated[:, width:].tolist(), strict=True):
        new = tuple(takewhile(lambda token: token not in ends, row[: prompt.most]))
        made.append(
            Continuation(new, row[len(new)] if len(new) < len(row[: prompt.most]) else None)
        )
    return made


_SPARE_TOKENS = 8
"""Tokens that a model may use beyond the answer's, since it may split words differently."""


@final
@dataclass(frozen=True)
class RatedTexts(GenerativeTexts):
    """The mean number of the texts that a plan generates; a sample has its prompt and its rating.

    For `generate` it is the share of contexts that the plan continues with a right answer, decoding
    greedily. Only the first line of the text is compared; all lines count if an answer has several.
    """

    samples: tuple[tuple[Prompt, Callable[[str], float]], ...]

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the first contexts."""
        return [prompt for prompt, _ in self.samples[:samples]]

    def score(self, texts: Sequence[str]) -> Score:
        """Return the mean over the first samples. Raises as the ratings do."""
        pairs = zip(self.samples[: len(texts)], texts, strict=True)
        return mean([rate(text) for (_, rate), text in pairs])


def normalised_answer(text: str) -> str:
    """Return the text in NFC, with single blanks and no blanks at the ends; case counts."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prepare_rated(
    rating: Callable[[Exchange], Callable[[str], float]],
    objective: Objective,
    context: ObjectiveContext,
) -> PreparedObjective:
    """Prepare an objective of generated texts; `rating` returns how a row rates its text.

    Raises CalibrationError.
    """
    path, encoder = context.file(objective), context.encoder

    def encode(row: Exchange) -> tuple[Prompt, Callable[[str], float]]:
        return _prompt_of(encoder, row), rating(row)

    samples = encoded(path, context.drawn(read_rows(path, "answer")), encode)
    return RatedTexts(*traits_of(objective), samples, encoder)


def exact_match(row: Exchange) -> Callable[[str], float]:
    """Return the rating of a text: 1 if it is one of the row's answers, normalised, else 0."""
    answers = frozenset(map(normalised_answer, (row.continuation, *row.aliases)))
    return lambda text: float(normalised_answer(text) in answers)


def _prompt_of(encoder: TokenEncoder, row: Exchange) -> Prompt:
    """Return a row's context, with room for its longest answer. Raises EncodingError."""
    answers = (row.continuation, *row.aliases)
    lengths = [len(encoder.plain(joined_text(row.context, answer))) for answer in answers]
    most = _SPARE_TOKENS + max(lengths)
    tokens = encoder.prompt(row.context.rstrip(" \t"))  # a token of blanks would mislead
    if encoder.positions is not None:
        if most >= encoder.positions:
            words = f"an answer has {most} tokens, but the model takes {encoder.positions} in all"
            raise EncodingError(words, "shorten the row's answers")
        tokens = tokens[most - encoder.positions :]
    lines = any("\n" in answer.strip() for answer in answers)
    return Prompt(tokens, most, () if lines else ("\n",))
