"""Texts of healing that a plugin provides: files of predictions, and answers of a teacher."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float, Int32
from torch import Tensor

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.evaluation.fits.heal.teacher_chats import TeacherChats
from gptailor.evaluation.fits.heal.text import HealingSource
from gptailor.evaluation.live.stitch import Stitched
from gptailor.plan.doors import Door


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
