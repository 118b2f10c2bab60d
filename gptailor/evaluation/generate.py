"""Answers of plans and models to a prompt, side by side; nothing is compiled.

`short_answers` are the answers to one prompt that `compile`, `search` and `eval` show in the end.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.files import shown
from gptailor.evaluation.chat_text import chat_texts
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.live.content_keys import cause_of_nan
from gptailor.evaluation.meter import Meter, Placement, context_length
from gptailor.evaluation.objectives.generate import Continuation, continued
from gptailor.evaluation.objectives.tokens import (
    Prompt,
    TokenEncoder,
    tokenizer_model,
    tokenizer_of,
)
from gptailor.evaluation.scores import Failure, NotANumberError
from gptailor.evaluation.targets import Target, as_list, find_targets
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths


@final
@dataclass(frozen=True)
class GeneratedText:
    """A target's answer to a prompt; `failure` is the reason for a missing text."""

    target: str
    text: str
    failure: str | None = None

    @property
    def sign(self) -> str:
        """The sign of a ruined model in words, or an empty text."""
        return loop_of(self.text) if self.text.strip() else "ends at once"


def loop_of(text: str) -> str:
    """Return words about the loop that a text has, or an empty text.

    A text loops if at least a third of its four-grams occur earlier in it. Four-grams consist of
    words, signs and numbers. All numbers count as one, so that a text that only counts loops too.
    So does one with a run of a few letters or digits.
    """
    words = _WORDS.findall(re.sub(r"\d+", "0", text.lower()))
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    repeated = (len(grams) - len(set(grams))) / max(1, len(grams))
    if repeated >= _LOOPING:
        return f"loops: {repeated:.0%} of its four-grams occur earlier in it"
    run = _RUN.search(text)
    return f"loops: '{run[1]}' {len(run[0]) // len(run[1])} times in a row" if run else ""


SHORT_PROMPT = "The sky is blue because"
"""The prompt of short answers."""
SHORT_TOKENS = 40
"""The most tokens of a short answer."""
_WORDS = re.compile(r"[a-z\u00df-\u024f]+|\S")
"""A word in Latin letters, or a single character."""
_RUN = re.compile(r"([^\W_]{1,4}?)\1{19,}")
"""One to four letters or digits, at least 20 times in a row."""
_LOOPING = 1 / 3
"""The least share of repeated four-grams of a text that loops."""


def generate(  # noqa: PLR0913 (the verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    prompt: str,
    *,
    tokens: Positive = 64,
    chat: bool = False,
    models: ModelPaths | None = None,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
    on_event: OnEvent = ignore_events,
) -> list[GeneratedText]:
    """Return each target's answer to a prompt, of at most `tokens` tokens.

    A target is a plan or its file, a model's folder, a GGUF file, or a Hub id; nothing is written.
    An answer has the likeliest token at each step, up to the end token. With `chat` the prompt is a
    user's message in the target's own chat template. The other arguments are the same as in
    `evaluate`.

    A target that fails has its reason in `failure`. Raises PlanError for faults of plans, OSError
    for a missing file.
    """
    place = Placement.of(device, dtype, memory)
    found = find_targets(
        as_list(targets), models or {}, device=device, memory=place.memory, on_event=on_event
    )
    return list(answers(found, prompt, tokens, Meter(place, on_event), chat=chat))


def short_answers(targets: Sequence[Target], meter: Meter) -> tuple[GeneratedText, ...]:
    """Return the answers of targets to `SHORT_PROMPT`, of at most `SHORT_TOKENS`.

    A tokenizer with a chat template gets it as a user's message. Targets that fail are left out:
    targets without a tokenizer, and targets with more weights than the meter's memory, because each
    token would read them again.
    """
    found = answers(targets, SHORT_PROMPT, SHORT_TOKENS, meter, chat=None)
    return tuple(answer for answer in found if answer.failure is None)


def short_answers_of(source: Path, meter: Meter) -> tuple[GeneratedText, ...]:
    """Return the short answers of the base of a plan or compiled folder, and of itself.

    Raises as `find_targets`.
    """
    [target] = find_targets([source], {}, device=meter.place.device, memory=meter.place.memory)
    bases = [] if target.base is None else [replace(target, name="base", prepared=target.base)]
    return short_answers([*bases, target], meter)


def answers(
    targets: Sequence[Target],
    prompt: str,
    most: int,
    meter: Meter,
    *,
    chat: bool | None = False,
) -> Iterator[GeneratedText]:
    """Yield each target's answer of at most `most` tokens, as `generate` returns them.

    If `chat` is None, the prompt is a user's message where the tokenizer has a chat template, and
    a target fails if its weights don't fit into the memory.
    """
    for target in targets:
        meter.family(target.prepared.models)
    for target in targets:
        text = attempt(partial(_answer, meter, target, prompt, most, chat))
        if isinstance(text, Failure):
            yield GeneratedText(target.name, "", text.message)
        else:
            yield GeneratedText(target.name, text)


def _answer(meter: Meter, target: Target, prompt: str, most: int, chat: bool | None) -> str:
    tokenizer, [made] = target_continuations(meter, target, [prompt], most, chat=chat)
    return str(tokenizer.decode([*made.tokens], skip_special_tokens=True))


def target_continuations(
    meter: Meter, target: Target, prompts: Sequence[str], most: int, *, chat: bool | None
) -> tuple[PreTrainedTokenizerBase, list[Continuation]]:
    """Return a target's tokenizer, and its continuations of at most `most` tokens.

    `chat` is as in `answers`. Raises TailorError for a target that fails.
    """
    prepared = target.prepared
    tokenizer = tokenizer_of(tokenizer_model(prepared))
    encoder = TokenEncoder(tokenizer, context_length(prepared.compiled.config))
    if chat or (chat is None and tokenizer.chat_template):
        if chat and prepared.plan.chat_template is not None:
            message = "only the compiled folder has the plan's chat template"
            raise TailorError(f"{message}: compile the plan, and name the folder")
        chats = [([{"role": "user", "content": prompt}], True) for prompt in prompts]
        remedy = "remove --chat"
        texts = chat_texts(tokenizer, chats, target.name, remedy)
        encoded = [encoder.plain(text) for text in texts]
        if () in encoded:
            message = f"the chat template of '{target.name}' gives no tokens for this prompt"
            raise TailorError(f"{message}, only the text {shown(texts[encoded.index(())])}")
    else:
        encoded = [encoder.prompt(prompt) for prompt in prompts]
    if encoder.positions is not None:
        most = min(most, encoder.positions - 1)
        encoded = [tokens[most - encoder.positions :] for tokens in encoded]
    repairs = meter.repairs(prepared.models)
    contents = repairs.contents(repairs.stitcher.table.resolved(prepared.plan))
    live, memory = repairs.stitcher.live(contents).model, repairs.stitcher.memory
    if chat is None and memory is not None and live.num_parameters() * live.dtype.itemsize > memory:
        raise TailorError("the weights don't fit into the memory")
    batch_tokens = len(encoded) * (max(map(len, encoded)) + most)
    try:
        made = continued(live, tokenizer, [Prompt(each, most) for each in encoded], batch_tokens)
    except NotANumberError as error:
        raise NotANumberError(f"{error}; {cause_of_nan(contents, live.dtype)}") from None
    return tokenizer, made
