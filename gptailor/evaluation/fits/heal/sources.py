"""The rows that a student learns from: from files, chats and plugins.

A plugin provides files of predictions, and answers of a teacher.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float, Int32
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.datasets import (
    CalibrationError,
    Chat,
    Exchange,
    StoredTexts,
    TextOrChat,
    order,
    require_answer,
    whole_text,
)
from gptailor.checkpoint.models import folder_of
from gptailor.checkpoint.tokenizer_settings import NAMED_TEMPLATES, read_template
from gptailor.evaluation.chat_text import Message, chat_texts
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.objectives.tokens import TokenEncoder, tokenizer_of
from gptailor.plan.doors import Door
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import TemplateOf
from gptailor.program.sources import Checked, output_tokenizer

_DATE = "2024-07-26"
"""The date that templates show as today's, so that a healing is the same on each day.

Llama 3.2's template shows this date if it has no clock.
"""
_OTHER_ROWS = "give rows of 'prompt' or 'text', or name a teacher with a chat template"
_AT_ONCE = 256
"""The number of rows that are rendered at once."""


@final
@dataclass(frozen=True)
class EncodedRow:
    """The tokens of a row; the tokens from `answer` on are its answer."""

    tokens: tuple[int, ...]
    answer: int = 0


@final
@dataclass(frozen=True, eq=False)
class HealingSource:
    """A file, its share of the tokens, and a function that yields its rows in drawn order.

    The function receives the number of tokens that are wanted. A `whole` text has no rows: it is
    one row, and its sequences are drawn instead. A text with a `length` has a sequence of this many
    tokens in each row. Texts that are `answered` by a teacher are read after the others.
    """

    path: Path
    share: Fraction
    rows: Callable[[int], Iterator[EncodedRow]]
    whole: bool = False
    answered: bool = False
    length: int | None = None


# -------------------------------------------------------------------------------------------- files


@final
@dataclass(frozen=True)
class TeacherChats:
    """The chat template of a teacher, which is a plan with its models.

    `name` is the model that has the template, in messages.
    """

    teacher: Checked
    name: str

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer with its chat template."""
        plan, models = self.teacher.plan, self.teacher.models
        tokenizer = tokenizer_of(output_tokenizer(plan, models))
        if isinstance(plan.chat_template, TemplateOf):
            tokenizer.chat_template = tokenizer_of(models[plan.chat_template.model]).chat_template
        elif (named := plan.chat_template) is not None:
            text = NAMED_TEMPLATES.get(named) or read_template(folder_of(plan, named))
            tokenizer.chat_template = text
        return tokenizer

    @property
    def template(self) -> object:
        """The teacher's chat template, or its templates by name; None without any."""
        return self._tokenizer.chat_template or None

    def require(self, path: Path) -> None:
        """Raise CalibrationError (C812) if the template is missing."""
        if self.template is None:
            message = (
                f"rows of 'messages' need a chat template, but '{self.name}' has no chat template"
            )
            raise CalibrationError("C812", message, path, help=_OTHER_ROWS)

    def texts(self, path: Path, chats: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
        """Return chats of a file as text, each with whether an answer begins.

        Raises CalibrationError (C812) if the template is missing or fails.
        """
        self.require(path)
        try:
            return chat_texts(self._tokenizer, chats, self.name, _OTHER_ROWS, date=_DATE)
        except TailorError as error:
            raise CalibrationError("C812", str(error), path) from None


def file_source(
    path: Path,
    share: Fraction,
    encoder: TokenEncoder,
    seed: int,
    chats: TeacherChats | None = None,
    *,
    only_answers: bool = False,
) -> HealingSource:
    """Return the source of a file of text; `chats` renders its rows of messages.

    Rows are read from the disk when they are needed.

    Raises CalibrationError as `StoredTexts` does, C812 for messages without a template, and with
    `only_answers` C804 for a row without an answer.
    """
    rows = StoredTexts(path)
    if chats is not None and Chat in rows.kinds:
        chats.require(path)
    for row in rows.read(range(len(rows))) if only_answers else ():
        require_answer(path, row)

    def encoded(_wanted: int) -> Iterator[EncodedRow]:
        numbers = order(len(rows), seed)
        for at in range(0, len(rows), _AT_ONCE):
            drawn = list(rows.read(numbers[at : at + _AT_ONCE]))
            texts = _row_texts(path, drawn, chats)
            begun = [""] * len(drawn)
            if only_answers:
                begun = _row_texts(path, drawn, chats, asked=True)
            for text, beginning in zip(texts, begun, strict=True):
                tokens, before = encoder.plain(text), encoder.plain(beginning) if beginning else ()
                yield EncodedRow(tokens, _common_length(before, tokens))

    if not rows.whole:
        return HealingSource(path, share, encoded)
    kept = cache(lambda: [*encoded(0)])  # a text without rows is encoded as a whole, once
    return HealingSource(path, share, lambda _wanted: iter(kept()), whole=True)


def _row_texts(
    path: Path, rows: Sequence[TextOrChat], chats: TeacherChats | None, *, asked: bool = False
) -> list[str]:
    """Return rows as text; up to the beginning of their answers if only questions are `asked`."""
    talks = (row.asked if asked else row for row in rows if isinstance(row, Chat))
    messages = [(talk.messages, asked) for talk in talks]
    rendered = iter(chats.texts(path, messages) if chats is not None and messages else ())
    texts = list[str]()
    for row in rows:
        if isinstance(row, Chat):
            texts.append(next(rendered))
        elif asked and isinstance(row, Exchange):
            texts.append(row.context.rstrip())
        else:
            texts.append(whole_text(row))
    return texts


def _common_length(before: Sequence[int], tokens: Sequence[int]) -> int:
    """Return with how many equal tokens both begin."""
    pairs = zip(before, tokens, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


# ------------------------------------------------------------------------------------------ plugins


def unusable_predictions(
    message: str, path: Path, help: str = "make the file with 'gptailor teach'"
) -> CalibrationError:
    """Return the error (C814) for an unusable file of predictions."""
    return CalibrationError("C814", message, path, help=help)


@runtime_checkable
class PredictionsFile(Protocol):
    """A file of a teacher's predictions, open. Errors are CalibrationError (C801, C814)."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def kept(self) -> int:
        """The number of a prediction's tokens."""

    @property
    def length(self) -> int:
        """The number of tokens of each sequence."""

    @classmethod
    def open(cls, path: Path) -> "PredictionsFile":
        """Read the format and the sequences, but no predictions."""

    def refuse_other_tokens(self, tokenizer: str, vocabulary: int) -> None:
        """Raise CalibrationError (C814) for predictions of other tokens than a model's."""

    def source(self, share: Fraction, seed: int) -> HealingSource:
        """Return the sequences as a text of healing, in the order that a seed draws."""

    def drawn(self, seed: int, numbers: Sequence[int]) -> list[int]:
        """Return the rows of the sequences with these numbers in the order that a seed draws."""

    def read(
        self, rows: Sequence[int], kept: int
    ) -> Iterator[tuple[int, Int32[Tensor, " length kept"], Float[Tensor, " length groups"]]]:
        """Yield the predictions of some sequences, each with its number's place in `rows`.

        A prediction has its `kept` likeliest tokens. If the vocabulary has more, the
        log-probability of all other tokens together comes last.
        """


PREDICTIONS: Door[type[PredictionsFile]] = Door("predictions", "format", type, {})
"""The formats of files of predictions, by the end of their names: `parquet`."""


def open_predictions(path: Path) -> PredictionsFile:
    """Open a file of predictions. Raises TailorError without a plugin for it."""
    return PREDICTIONS.required("parquet", f"'{path}'", "teach").open(path)


@final
@dataclass(frozen=True, eq=False)
class AnsweringTeacher:
    """A teacher that answers prompts: its live model, and a key of all that it depends on."""

    live: Callable[[], Stitched]
    chats: TeacherChats
    key: str


@runtime_checkable
class AnsweredPrompts(Protocol):
    """The answers of a teacher to the prompts of a file."""

    def source(self, share: Fraction) -> HealingSource:
        """Return the text that the answers are."""


ANSWERS: Door[Callable[..., AnsweredPrompts]] = Door("answers", "answers", type, {})
"""Classes of a teacher's answers: `teacher`.

They are called with the file of prompts, the settings, the teacher, the encoder of the student's
tokens, the seed, the store of answers, and the receiver of events (`Progress` of answering).
"""


def answers_to(path: Path) -> Callable[..., AnsweredPrompts]:
    """Return the class of the answers to a file. Raises TailorError without a plugin for it."""
    return ANSWERS.required("teacher", f'answers("{path}")', "teach")
