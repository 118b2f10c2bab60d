"""`loops` and `ends`: the shares of a model's continuations that repeat themselves, and that end.

The model continues each row greedily. A row of `prompt` or `messages` is a chat, in the tokenizer's
chat template. A row of `text` or `context` is continued unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from transformers import PreTrainedModel

from gptailor.checkpoint.datasets import CalibrationError, Chat, Passage, read_rows
from gptailor.evaluation.chat_text import chat_texts
from gptailor.evaluation.generate import loop_of
from gptailor.evaluation.objectives.base import (
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    encoded,
    traits_of,
)
from gptailor.evaluation.objectives.generate import Continuation, Generative
from gptailor.evaluation.objectives.tokens import EncodingError, Prompt, TokenEncoder
from gptailor.evaluation.scores import Score, mean
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective

_TOKENS = 128
"""Default number of tokens of a continuation."""
_DATE = "2024-07-26"
"""The day that chat templates show as today, so that scores don't depend on the day."""
_OTHER_ROWS = "use rows with 'text', which are continued without a template"


@final
@dataclass(frozen=True)
class Loops(Generative):
    """The share of continuations that loop, as `loop_of` defines it; a sample is a prompt."""

    samples: tuple[Prompt, ...]

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the first prompts."""
        return self.samples[:samples]

    def rate(self, made: Sequence[Continuation]) -> Score:
        """Return the share of continuations that loop."""
        decode = self.encoder.tokenizer.decode
        texts = (str(decode([*each.tokens], skip_special_tokens=True)) for each in made)
        return mean([float(bool(loop_of(text))) for text in texts])


@final
@dataclass(frozen=True)
class Ends(Generative):
    """The share of continuations that end by an end token; a sample is a prompt."""

    samples: tuple[Prompt, ...]

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the first prompts."""
        return self.samples[:samples]

    def evaluate(self, model: PreTrainedModel, samples: int | None = None) -> Score:
        """Return the score of a model. Raises ObjectiveError for a model without an end token."""
        own = model.generation_config
        if (own is None or own.eos_token_id is None) and self.encoder.tokenizer.eos_token is None:
            message = "'ends' needs an end token, which the model and its tokenizer lack"
            raise ObjectiveError(
                f"{message}; give 'eos_token_id' in generation_config.json, or remove 'ends'"
            )
        return super().evaluate(model, samples)

    def rate(self, made: Sequence[Continuation]) -> Score:
        """Return the share of continuations with an end token behind them."""
        return mean([float(each.end is not None) for each in made])


def prepare_continuations(objective: Objective, context: ObjectiveContext) -> PreparedObjective:
    """Prepare `loops(file, tokens)` or `ends(file, tokens)`.

    Raises CalibrationError for an unusable file, a template that fails, and a prompt without room
    for its continuation; ObjectiveError for a wrong number of tokens.
    """
    path, most = context.file(objective), objective.arguments.get("tokens", _TOKENS)
    if not isinstance(most, int | float) or most < 1 or most != int(most):
        message = f"expected a whole number of at least 1 as 'tokens' of '{objective.name}'"
        raise ObjectiveError(f"{message}, got {most}")
    rows = context.drawn(read_rows(path, "opening"))
    texts = _texts(context.encoder, path, rows)

    def encode(row: Passage | Chat) -> Prompt:
        text = texts.get(id(row))
        tokens = (
            context.encoder.plain(text)
            if text is not None
            else context.encoder.prompt(_plain_text(row))
        )
        if not tokens:
            raise EncodingError("the prompt has no tokens", "remove the row")
        room = context.encoder.positions
        if room is not None and len(tokens) + int(most) > room:
            words = f"the prompt and its continuation have {len(tokens) + int(most):,} tokens, "
            words += f"more than the model's {room:,}"
            raise EncodingError(words, "shorten the prompt, or give fewer 'tokens'")
        return Prompt(tokens, int(most))

    kind = Loops if objective.name == "loops" else Ends
    samples = encoded(path, rows, encode)
    return kind(*traits_of(objective, "spread"), samples, context.encoder)


def _texts(encoder: TokenEncoder, path: Path, rows: Sequence[Passage | Chat]) -> dict[int, str]:
    """Return the chats as text by the identities of their rows; empty without a chat template.

    Raises CalibrationError (C812) for a template that fails, and for rows of `messages` without a
    template.
    """
    chats = [row for row in rows if isinstance(row, Chat)]
    if not chats or not encoder.tokenizer.chat_template:
        for row in chats:
            if len(row.messages) > 1:
                message = "rows of 'messages' need a chat template, which the tokenizer lacks"
                raise CalibrationError("C812", message, path, row.line, _OTHER_ROWS)
        return {}
    asked = [(row.messages, True) for row in chats]
    name = str(encoder.tokenizer.name_or_path) or "the tokenizer"
    try:
        texts = chat_texts(encoder.tokenizer, asked, name, _OTHER_ROWS, date=_DATE)
    except TailorError as error:
        raise CalibrationError("C812", str(error), path) from None
    return {id(row): text for row, text in zip(chats, texts, strict=True)}


def _plain_text(row: Passage | Chat) -> str:
    """Return a text to be continued, or the one message of a chat without a template."""
    return row.text if isinstance(row, Passage) else row.messages[0]["content"]
