"""`generate`: whether a plan says the right answer."""

import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gptailor.checkpoint.files import quoted
from gptailor.evaluate.forward.requests import Request
from gptailor.evaluate.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    encoded,
    traits_of,
)
from gptailor.evaluate.objectives.datasets import Exchange, joined_text, read_exchanges
from gptailor.evaluate.objectives.tokens import EncodingError, Prompt, TokenEncoder
from gptailor.evaluate.scores import Score, mean
from gptailor.plan.plan import Objective

_BATCH_TOKENS = 8192
"""Tokens of a batch while text is made, padding included."""


@dataclass(frozen=True)
class Generative(PreparedObjective):
    """An objective that needs the model to make text."""

    encoder: TokenEncoder

    @abstractmethod
    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """What the model is to go on from in the first samples; None: in all."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> Score:
        """The score of what the model said after the first `prompts`."""

    @final
    def requests(self, samples: int) -> Sequence[Request]:
        """The prompts, all of whose tokens but the first are predicted."""
        prompts = self.prompts(samples)
        return [Request(prompt.tokens, 1) for prompt in prompts if len(prompt.tokens) > 1]

    @final
    def judge(self, model: PreTrainedModel, samples: int | None = None) -> Score:
        """The score of a model by the first samples."""
        prompts = self.prompts(samples)
        return self.score(greedy(model, self.encoder.tokenizer, prompts, _BATCH_TOKENS))


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_tokens: int,
) -> list[str]:
    """What the model says after each prompt, its likeliest token at each step.

    The text ends before the first stop, at the end token, or after `most` tokens. Prompts of like
    length run together, padded on the left; a batch holds at most `batch_tokens` tokens, those to
    come included. Nothing of the model's own generation settings counts but its end tokens.
    """
    ordered = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
    texts = [""] * len(prompts)
    with torch.no_grad(), _settings(model, tokenizer) as settings:
        for batch in _batches(ordered, prompts, batch_tokens):
            said = _decode(model, tokenizer, [prompts[i] for i in batch], settings)
            for number, text in zip(batch, said, strict=True):
                texts[number] = text
    return texts


@final
@dataclass(eq=False)
class _Stop(StoppingCriteria):
    """Ends a row once its new text holds one of its stops, or it has all its tokens."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    width: int

    def __call__(
        self, input_ids: Int64[Tensor, " batch length"], scores: Any, **_: Any
    ) -> Bool[Tensor, " batch"]:
        done = []
        for prompt, row in zip(self.prompts, input_ids[:, self.width :].tolist(), strict=True):
            full = len(row) >= prompt.most
            text = "" if full else str(self.tokenizer.decode(row, skip_special_tokens=True))
            done.append(full or any(stop in text for stop in prompt.stops))
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[GenerationConfig]:
    own = model.generation_config
    end = tokenizer.eos_token_id if own is None else own.eos_token_id or tokenizer.eos_token_id
    ends = _token_numbers(end)
    pad = tokenizer.pad_token_id
    settings: GenerationConfig = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=ends or None,
        pad_token_id=pad if isinstance(pad, int) else (ends or [0])[0],
    )
    model.generation_config = settings  # what is unset would be filled from the model's own
    try:
        yield settings
    finally:
        model.generation_config = own


def _token_numbers(end: Any) -> list[int]:
    """Return the tokens that end a text. Raises ObjectiveError for what are no tokens' numbers."""
    ends = [] if end is None else list(end) if isinstance(end, list | tuple) else [end]
    for number in ends:
        if not isinstance(number, int) or not 0 <= number < 2**63:
            message = f"expected token numbers as 'eos_token_id', got {quoted(str(number))}"
            raise ObjectiveError(message, "correct generation_config.json of the model")
    return ends


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
) -> list[str]:
    width = max(len(prompt.tokens) for prompt in prompts)
    pad = int(settings.pad_token_id)
    rows = [[pad] * (width - len(p.tokens)) + list(p.tokens) for p in prompts]
    mask = [[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in prompts]
    settings.max_new_tokens = max(prompt.most for prompt in prompts)
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    made = generate(
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, prompts, width)]),
    )
    ends = set(settings.eos_token_id or ())
    texts = []
    for prompt, row in zip(prompts, made[:, width:].tolist(), strict=True):
        new = list(takewhile(lambda token: token not in ends, row[: prompt.most]))
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        stops = [at for stop in prompt.stops if (at := text.find(stop)) >= 0]
        texts.append(text[: min(stops, default=None)])
    return texts


_SPARE_TOKENS = 8
"""Tokens that a model may use beyond those of the answer: it may cut words otherwise."""


@final
@dataclass(frozen=True)
class _Task:
    """A context, and the normalised answers that are right."""

    prompt: Prompt
    answers: frozenset[str]


@final
@dataclass(frozen=True)
class ExactMatch(Generative):
    """The share of contexts after which the plan says an answer, decoding greedily.

    Compared is the first line of what it says (of as many lines as an answer of several has), both
    sides `normalised`.
    """

    samples: tuple[_Task, ...]

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """The first contexts."""
        return [task.prompt for task in self.samples[:samples]]

    def score(self, texts: Sequence[str]) -> Score:
        """The share of right answers among the first samples."""
        pairs = zip(texts, self.samples[: len(texts)], strict=True)
        return mean([float(normalised_answer(text) in task.answers) for text, task in pairs])


def normalised_answer(text: str) -> str:
    """The text in Unicode's NFC, runs of blanks as one, none at the ends. Case counts."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prepare_generate(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """`generate(file)`. Raises CalibrationError."""
    path = context.file(objective)
    rows = context.drawn(read_exchanges(path))
    encoder = context.encoder
    tasks = encoded(path, rows, partial(_task, encoder))
    return ExactMatch(*traits_of(objective), tasks, encoder)


def _task(encoder: TokenEncoder, row: Exchange) -> _Task:
    answers = (row.continuation, *row.others)
    lengths = [len(encoder.plain(joined_text(row.context, answer))) for answer in answers]
    most = _SPARE_TOKENS + max(lengths)
    tokens = encoder.prompt(row.context.rstrip(" \t"))  # a token of blanks would mislead
    if encoder.positions is not None:
        if most >= encoder.positions:
            words = f"an answer takes {most} tokens, and the model {encoder.positions} in all"
            raise EncodingError(words)
        tokens = tokens[most - encoder.positions :]
    lines = any("\n" in answer.strip() for answer in answers)
    return _Task(
        Prompt(tokens, most, () if lines else ("\n",)), frozenset(map(normalised_answer, answers))
    )
