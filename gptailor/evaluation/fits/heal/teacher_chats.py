"""Chats of a healing's texts, in the form of the chat template of the text's teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.chat_template import NAMED_TEMPLATES, read_template
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.models import folder_of
from gptailor.evaluation.chat_text import Message, chat_texts
from gptailor.evaluation.objectives.tokens import tokenizer_of
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import TemplateOf
from gptailor.program.output_tokenizer import output_tokenizer
from gptailor.program.sources import Checked

_DATE = "2024-07-26"
"""The date that templates show as today's, so that a healing is the same on each day.

Llama 3.2's template shows this date if it has no clock.
"""
_OTHER_ROWS = "give rows of 'prompt' or 'text', or name a teacher with a chat template"


@final
@dataclass(frozen=True)
class TeacherChats:
    """The chat template of a teacher, which is a plan beside its models.

    `name` is the model that has the template, in messages.
    """

    teacher: Checked
    name: str

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer with its chat template."""
        tokenizer = tokenizer_of(output_tokenizer(self.teacher.plan, self.teacher.models))
        plan = self.teacher.plan
        if isinstance(plan.chat_template, TemplateOf):
            other = tokenizer_of(self.teacher.models[plan.chat_template.model])
            tokenizer.chat_template = other.chat_template
        elif (named := plan.chat_template) is not None:
            text = NAMED_TEMPLATES.get(named) or read_template(folder_of(plan, named))
            tokenizer.chat_template = text
        return tokenizer

    @property
    def template(self) -> object:
        """The teacher's chat template, or its templates by name; None without any."""
        return self._tokenizer.chat_template or None

    @property
    def available(self) -> bool:
        """Return whether the teacher has a chat template."""
        return self.template is not None

    def require(self, path: Path) -> None:
        """Raise CalibrationError (C812) if the template is missing."""
        if not self.available:
            message = f"rows of 'messages' need a chat template, and '{self.name}' has none"
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
