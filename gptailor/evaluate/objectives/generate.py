"""`generate`: whether a plan says the right answer."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptailor.evaluate.objectives.base import (
    GENERATION_BATCH_TOKENS,
    Judged,
    ObjectiveContext,
    PreparedObjective,
    Traits,
)
from gptailor.evaluate.objectives.datasets import (
    CalibrationError,
    Exchange,
    joined_text,
    read_exchanges,
)
from gptailor.evaluate.objectives.decoding import Prompt, greedy
from gptailor.evaluate.objectives.tokens import Seam, SeamError
from gptailor.evaluate.outcome import Score, mean

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
class ExactMatch(Judged):
    """The share of contexts after which the plan says an answer, decoding greedily.

    Compared is the first line of what it says (of as many lines as an answer of several has), both
    sides `normalised`.
    """

    traits: Traits
    samples: tuple[_Task, ...]
    tokenizer: PreTrainedTokenizerBase

    @property
    def size(self) -> int:
        """How many contexts there are."""
        return len(self.samples)

    def part(self, start: int, stop: int) -> PreparedObjective:
        """Some contexts."""
        return replace(self, samples=self.samples[start:stop])

    def prompts(self, samples: int) -> Sequence[Prompt]:
        """The first contexts."""
        return [task.prompt for task in self.samples[:samples]]

    def judge(
        self,
        model: PreTrainedModel,
        samples: int | None = None,
        *,
        batch_tokens: int = GENERATION_BATCH_TOKENS,
    ) -> Score:
        """The share of right answers among the first samples."""
        tasks = self.samples[:samples]
        said = greedy(model, self.tokenizer, [task.prompt for task in tasks], batch_tokens)
        return mean(
            [float(normalised_answer(s) in t.answers) for s, t in zip(said, tasks, strict=True)]
        )


def normalised_answer(text: str) -> str:
    """The text in Unicode's NFC, runs of blanks as one, none at the ends. Case counts."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exchanges(file: str, setting: ObjectiveContext) -> tuple[_Task, ...]:
    """The samples of a file of answers, in the order in which fidelities take them.

    Raises CalibrationError.
    """
    path = setting.path(file)
    seam = Seam(setting.tokenizer, setting.positions)
    samples = []
    for row in setting.drawn(read_exchanges(path)):
        try:
            samples.append(_task(row, seam))
        except SeamError as error:
            raise CalibrationError("C805", str(error), path, row.line) from None
    return tuple(samples)


def _task(row: Exchange, seam: Seam) -> _Task:
    answers = (row.continuation, *row.others)
    most = _SPARE_TOKENS + max(
        len(seam.plain(joined_text(row.context, answer))) for answer in answers
    )
    tokens = seam.prompt(
        row.context.rstrip(" \t")
    )  # a token of blanks misleads; a line end is said
    if seam.positions is not None:
        if most >= seam.positions:
            raise SeamError(f"an answer takes {most} tokens, and the model {seam.positions} in all")
        tokens = tokens[most - seam.positions :]
    lines = any("\n" in answer.strip() for answer in answers)
    prompt = Prompt(tokens, most, () if lines else ("\n",))
    return _Task(prompt, frozenset(normalised_answer(answer) for answer in answers))
