"""`lm_eval`: tasks of lm-evaluation-harness, run by our forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.evaluate.forward.requests import Measure, Request, Rows
from gptailor.evaluate.objectives.base import (
    GENERATION_BATCH_TOKENS,
    Forward,
    Judged,
    ObjectiveError,
    PreparedObjective,
    Traits,
)
from gptailor.evaluate.objectives.decoding import Prompt, greedy
from gptailor.evaluate.objectives.lm_eval_task import HarnessTask
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.tokens import Seam, SeamError
from gptailor.evaluate.outcome import Score

_LONGEST_WINDOW = 2048
"""Tokens of a window where a model takes any number, as lm-eval has it."""

NEW_TOKENS = 256
"""Tokens that are made where a task doesn't say, as lm-eval has it."""

Instances = tuple[tuple[tuple[Request, ...], ...], ...]
"""For each sample, for each of its instances: the texts whose log-likelihoods add up."""


@final
@dataclass(frozen=True, eq=False)
class Likelihoods(Forward):
    """A task of log-likelihoods, whole texts' among them; a sample is a document."""

    traits: Traits
    task: HarnessTask
    samples: Instances
    seam: Seam

    @property
    def size(self) -> int:
        """How many documents there are."""
        return len(self.samples)

    @property
    def measure(self) -> Measure:
        """The logarithm of each token's probability, and whether it is the likeliest."""
        return likelihood

    def requests(self, samples: int) -> Sequence[Request]:
        """All texts of the first documents."""
        return [text for of in self.samples[:samples] for texts in of for text in texts]

    def part(self, start: int, stop: int) -> PreparedObjective:
        """Some documents, their requests made as if there were no others."""
        task = self.task.part(start, stop)
        return replace(self, task=task, samples=instances(task, self.seam))

    def score(self, results: Sequence[Tensor]) -> Score:
        """The task's metric of the first documents."""
        left = iter(results)
        answers: list[list[object]] = []
        counted = 0
        for of in self.samples:
            if counted >= len(results):
                break
            answers.append([self._answer(list(islice(left, len(texts)))) for texts in of])
            counted += sum(len(texts) for texts in of)
        return self.task.score(answers)

    def _answer(self, found: Sequence[Tensor]) -> object:
        likely = sum(float(one[:, 0].double().sum()) for one in found)
        if self.task.kind == "loglikelihood_rolling":
            return likely
        return likely, all(bool(one[:, 1].all()) for one in found)


@final
@dataclass(frozen=True, eq=False)
class Generated(Judged):
    """A task of texts that the model makes, greedily; a sample is a document."""

    traits: Traits
    task: HarnessTask
    samples: tuple[tuple[Prompt, ...], ...]
    seam: Seam

    @property
    def size(self) -> int:
        """How many documents there are."""
        return len(self.samples)

    def part(self, start: int, stop: int) -> PreparedObjective:
        """Some documents, their requests made as if there were no others."""
        task = self.task.part(start, stop)
        return replace(self, task=task, samples=prompts(task, self.seam))

    def prompts(self, samples: int) -> Sequence[Prompt]:
        """What the model is asked of the first documents."""
        return [prompt for of in self.samples[:samples] for prompt in of]

    def judge(
        self,
        model: PreTrainedModel,
        samples: int | None = None,
        *,
        batch_tokens: int = GENERATION_BATCH_TOKENS,
    ) -> Score:
        """The task's metric of the first documents."""
        used = self.samples[:samples]
        asked = [prompt for of in used for prompt in of]
        said = iter(greedy(model, self.seam.tokenizer, asked, batch_tokens))
        return self.task.score([list(islice(said, len(of))) for of in used])


def likelihood(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
) -> Float[Tensor, " n 2"]:
    """The logarithm of each token's probability, and 1 where no token is likelier."""
    first = (logits.argmax(dim=1) == targets).to(logits.dtype)
    return torch.stack([-surprise(logits, targets, rows)[:, 0], first], dim=1)


def instances(task: HarnessTask, seam: Seam) -> Instances:
    """The texts of a task's instances. Raises ObjectiveError."""
    return tuple(tuple(_texts(task, one, seam) for one in of) for of in task.instances)


def prompts(task: HarnessTask, seam: Seam) -> tuple[tuple[Prompt, ...], ...]:
    """The prompts of a task's instances. Raises ObjectiveError."""
    return tuple(tuple(_prompt(one, seam) for one in of) for of in task.instances)


def _texts(task: HarnessTask, instance: Any, seam: Seam) -> tuple[Request, ...]:
    try:
        if task.kind == "loglikelihood_rolling":
            return tuple(_windows(instance.args[0], seam))
        context, continuation = instance.args[:2]
        return (seam.request(context, continuation),)
    except SeamError as error:
        name, number = instance.task_name, instance.doc_id
        raise ObjectiveError(f"document {number} of lm-eval's '{name}': {error}") from None


def _windows(text: str, seam: Seam) -> Iterator[Request]:
    """Windows of which each predicts its own tokens, the last one from more of those before."""
    tokens = seam.encode(text)
    size = seam.positions or _LONGEST_WINDOW
    whole = (*seam.prompt("")[:1], *tokens)  # predicted is all after the first
    for start in range(0, len(tokens), size):
        stop = min(start + size, len(tokens))
        begin = 0 if start == 0 else stop - size
        yield Request(whole[begin : stop + 1], start - begin + 1)


def _prompt(instance: Any, seam: Seam) -> Prompt:
    context, settings = instance.args[:2]
    if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
        raise ObjectiveError(
            f"lm-eval's '{instance.task_name}' draws its answers at random, or by beams; "
            "a search's are greedy"
        )
    most, stops = _most(settings), settings.get("until") or []
    try:
        tokens = seam.prompt(context)
    except SeamError as error:
        raise ObjectiveError(f"lm-eval's '{instance.task_name}': {error}") from None
    if seam.positions is not None:
        if most >= seam.positions:
            raise ObjectiveError(
                f"lm-eval's '{instance.task_name}' makes {most} tokens, "
                f"and the model takes {seam.positions} in all"
            )
        tokens = tokens[most - seam.positions :]
    return Prompt(tokens, most, tuple([stops] if isinstance(stops, str) else stops))


def _most(settings: Mapping[str, Any]) -> int:
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    said = [settings[name] for name in names if settings.get(name) is not None]
    return int(said[0]) if said else NEW_TOKENS
