"""Answers of plans and models to a prompt, side by side; nothing is compiled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch

from gptailor.checkpoint.files import shown
from gptailor.evaluation.chat_text import chat_texts
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.meter import Meter, Placement, context_length
from gptailor.evaluation.objectives.generate import greedy
from gptailor.evaluation.objectives.tokens import (
    Prompt,
    TokenEncoder,
    tokenizer_model,
    tokenizer_of,
)
from gptailor.evaluation.scores import Failure
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
    user's message in the target's own chat template. The other arguments are those of `evaluate`.

    A target that fails has its reason in `failure`. Raises PlanError for faults of plans, OSError
    for a missing file.
    """
    place = Placement.of(device, dtype, memory)
    found = find_targets(
        as_list(targets), models or {}, device=device, memory=place.memory, on_event=on_event
    )
    return list(answers(found, prompt, tokens, place, chat=chat, on_event=on_event))


def answers(
    targets: Sequence[Target],
    prompt: str,
    most: int,
    place: Placement,
    *,
    chat: bool = False,
    on_event: OnEvent = ignore_events,
) -> Iterator[GeneratedText]:
    """Yield each target's answer of at most `most` tokens, as `generate` returns them."""
    meter = Meter(place, on_event)
    for target in targets:
        meter.family(target.prepared.models)
    for target in targets:
        text = attempt(partial(_answer, meter, target, prompt, most, chat))
        if isinstance(text, Failure):
            yield GeneratedText(target.name, "", text.message)
        else:
            yield GeneratedText(target.name, text)


def _answer(meter: Meter, target: Target, prompt: str, most: int, chat: bool) -> str:
    prepared = target.prepared
    tokenizer = tokenizer_of(tokenizer_model(prepared))
    encoder = TokenEncoder(tokenizer, context_length(prepared.compiled.config))
    if chat:
        if prepared.plan.chat_template is not None:
            message = "the plan names a chat template, which stands in its compiled folder"
            raise TailorError(f"{message}: compile it, and name that")
        chat_of_prompt = [{"role": "user", "content": prompt}], True
        [text] = chat_texts(tokenizer, [chat_of_prompt], target.name, "leave --chat out")
        tokens = encoder.plain(text)
        if not tokens:
            message = f"the chat template of '{target.name}' gives no tokens for this prompt"
            raise TailorError(f"{message}, only the text {shown(text)}")
    else:
        tokens = encoder.prompt(prompt)
    if encoder.positions is not None:
        most = min(most, encoder.positions - 1)
        tokens = tokens[most - encoder.positions :]
    live = meter.stitch(prepared.models, prepared.plan).model
    [answer] = greedy(live, tokenizer, [Prompt(tuple(tokens), most)], len(tokens) + most)
    return answer
