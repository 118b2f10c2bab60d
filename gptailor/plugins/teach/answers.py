"""A teacher's own answers to prompts, drawn once, kept on disk, and learned from as a text."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from gptailor.checkpoint.datasets import (
    CalibrationError,
    Chat,
    Passage,
    order,
    read_rows,
)
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.evaluation.fits.heal.learning import of_teacher
from gptailor.evaluation.fits.heal.sources import AnsweringTeacher, EncodedRow, HealingSource
from gptailor.evaluation.fits.kept_tensors import KeptTensors, TensorStore
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.objectives.generate import Continuation, continued
from gptailor.evaluation.objectives.tokens import Prompt, TokenEncoder
from gptailor.evaluation.scores import NotANumberError
from gptailor.plan.events import OnEvent, Progress
from gptailor.plan.plan import TeacherAnswers

_AT_ONCE = 32
"""Prompts that are answered together. A killed run continues after the last of them."""
_BATCH_TOKENS = 8192
"""Tokens of a batch, padding included."""
_LONGER = "raise 'tokens' of 'answers', or name a teacher that ends its answers"
_SHORTER = "give shorter prompts, or name a teacher that ends its answers"
_FILLED = "give other prompts, or name another teacher"


@final
class _Drawing(LogitsProcessor):
    """Leaves in each row of logits the one token that is drawn."""

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int64[Tensor, " batch length"], scores: Float[Tensor, " batch vocab"]
    ) -> Float[Tensor, " batch vocab"]:
        sums = (scores.double() / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        if not bool(sums[:, -1].isfinite().all()):  # an infinite prediction
            raise NotANumberError("the model's predictions are NaN")
        drawn = [torch.rand((), dtype=torch.float64, generator=each) for each in self.generators]
        below = torch.stack(drawn).to(sums.device)[:, None] * sums[:, -1:]
        tokens = (sums <= below).sum(dim=-1, keepdim=True).clamp_max(sums.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


def drawn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batch_tokens: int,
    *,
    temperature: float,
    seeds: Sequence[int],
) -> list[Continuation]:
    """Generate tokens after each prompt as `continued` does.

    With a temperature above 0 each token is drawn, by random numbers of the prompt's own seed.
    """

    def drawing(batch: Sequence[int]) -> LogitsProcessor:
        return _Drawing(temperature, [seeds[i] for i in batch])

    return continued(
        model, tokenizer, prompts, batch_tokens, drawing=drawing if temperature else None
    )


@final
@dataclass(frozen=True, eq=False)
class PromptAnswers:
    """The answers of a teacher to the prompts of a file, in the order that a seed draws.

    They are generated once they are needed, in fixed groups, and kept in `store`.
    """

    path: Path
    settings: TeacherAnswers
    teacher: AnsweringTeacher
    encoder: TokenEncoder
    seed: int
    store: TensorStore
    on_event: OnEvent

    def rows(self, wanted: int) -> Iterator[EncodedRow]:
        """Yield each prompt with its answer, as long as the caller asks; `wanted` are its tokens.

        Raises CalibrationError: C812 for a template that fails, C813 for answers that are all
        empty or all cut.
        """
        prompts = self._rows
        numbers = order(len(prompts), self.seed)
        known = self._known
        own_end = self.encoder.tokenizer.eos_token_id
        done, made = 0, list[Continuation]()
        for start in range(0, len(numbers), _AT_ONCE):
            group = numbers[start : start + _AT_ONCE]
            asked = self._prompts([prompts[number] for number in group])
            answers = known[start : start + len(group)]
            if len(answers) < len(group):
                self.on_event(Progress("answering", min(done, wanted), wanted, str(self.path)))
                answers = self._answered(group, asked)
                known[start:] = answers
                self._keep(known)
            made += answers
            self._refuse_useless(made, asked[0].most)
            for prompt, answer in zip(asked, answers, strict=True):
                end = [] if answer.end is None or answer.end == own_end else [answer.end]
                tokens = (*prompt.tokens, *answer.tokens, *end)
                done += len(tokens)
                yield EncodedRow(tokens, len(prompt.tokens))

    def _prompts(self, rows: Sequence[Passage | Chat]) -> list[Prompt]:
        """Return prompts in the chat form, or as they are where the teacher has no template."""
        positions, most = self.encoder.positions, self.settings.closed_tokens
        chats = self.teacher.chats
        messages = [
            row.messages if isinstance(row, Chat) else ({"role": "user", "content": row.text},)
            for row in rows
        ]
        if chats.template is not None or any(isinstance(row, Chat) for row in rows):
            texts = chats.texts(self.path, [(each, True) for each in messages])
            encoded = [self.encoder.plain(text) for text in texts]
        else:
            encoded = [self.encoder.encode(row.text) for row in rows if isinstance(row, Passage)]
        if () in encoded:
            message, line = "a prompt has no tokens", rows[encoded.index(())].line
            raise CalibrationError("C805", message, self.path, line, "remove it")
        if positions is not None:  # answers become shorter, and a prompt keeps its last half
            longest = max(map(len, encoded))
            most = min(most, max(positions - longest, positions // 2))
            encoded = [tokens[most - positions :] for tokens in encoded]
        return [Prompt(tokens, most) for tokens in encoded]

    def _answered(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> list[Continuation]:
        """Return the answers of the live teacher.

        Raises NotFiniteError if a teacher's predictions are NaN, TailorError for a teacher that
        fails.
        """
        model, tokenizer = self.teacher.live().model, self.encoder.tokenizer
        seeds = [_row_seed(self.seed, number) for number in numbers]
        temperature = self.settings.closed_temperature
        drawing = partial(drawn, temperature=temperature, seeds=seeds)
        return of_teacher(attempt(partial(drawing, model, tokenizer, prompts, _BATCH_TOKENS)))

    def _refuse_useless(self, answers: Sequence[Continuation], most: int) -> None:
        """Raise CalibrationError (C813) if all answers so far are empty, or all are cut.

        The last of them had at most `most` tokens.
        """
        count = f"all {len(answers)} first answers to these prompts"
        if not any(answer.tokens for answer in answers):
            raise CalibrationError("C813", f"{count} are empty", self.path, help=_FILLED)
        if all(answer.end is None for answer in answers):
            message = f"{count} are cut at {most} tokens"
            help_ = _LONGER if most == self.settings.closed_tokens else _SHORTER
            raise CalibrationError("C813", message, self.path, help=help_)

    @cached_property
    def _file(self) -> tuple[FileDigest, list[Passage | Chat]]:
        """The digest of the file, taken before it is read, and its prompts."""
        digest, rows = of_file(self.path), read_rows(self.path, "prompt")
        return digest, rows

    @property
    def _rows(self) -> list[Passage | Chat]:
        return self._file[1]

    def source(self, share: Fraction) -> HealingSource:
        """Return the text that the answers are.

        Raises CalibrationError: C812 for messages without a template, and as `read_rows` does.
        """
        if any(isinstance(row, Chat) for row in self._rows):
            self.teacher.chats.require(self.path)
        return HealingSource(self.path, share, self.rows, answered=True)

    # --------------------------------------------------------------------------------- on the disk

    @cached_property
    def _key(self) -> str:
        parts = (
            self.teacher.key, self._file[0], self.settings, self.seed, self.encoder.positions,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    @cached_property
    def _known(self) -> list[Continuation]:
        """The first answers: the kept answers, then also the answers made since."""
        if (kept := self.store.get(self._key)) is None:
            return []
        tokens, lengths = kept.tensors["tokens"], kept.tensors["lengths"]
        answers = torch.split(tokens, lengths.tolist())
        return [
            Continuation(tuple(answer.tolist()), None if end < 0 else end)
            for answer, end in zip(answers, kept.tensors["ends"].tolist(), strict=True)
        ]

    def _keep(self, answers: Sequence[Continuation]) -> None:
        tokens = [token for answer in answers for token in answer.tokens]
        ends = [-1 if answer.end is None else answer.end for answer in answers]
        lengths = [len(answer.tokens) for answer in answers]
        tensors = {"tokens": tokens, "lengths": lengths, "ends": ends}
        kept = {name: torch.tensor(values, dtype=torch.int64) for name, values in tensors.items()}
        self.store.put(self._key, KeptTensors(kept, {}))


def _row_seed(seed: int, number: int) -> int:
    """Return the seed of a prompt's own random numbers."""
    digest = hashlib.blake2b(f"answer {seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
