"""What a live model takes: its parameters, and its KV cache's bytes for each token."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.evaluate.live.contents import size_of
from gptailor.evaluate.live.template import embeddings
from gptailor.evaluate.outcome import Speed


def parameters(model: PreTrainedModel) -> int:
    """Entries of all parameters, a tied one counted once; those of hollow layers count too."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def cache_bytes(model: PreTrainedModel) -> int:
    """Bytes that one token of one sequence takes in the KV cache, over all layers.

    Measured on a cache of one token, so that it is what the architecture's own attention keeps. A
    layer whose window is full takes no more.
    """
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    made = model(input_ids=token, use_cache=True)
    cache = made[next(name for name in ("cache", "past_key_values") if name in made)]
    kept = [(layer.keys, layer.values) for layer in cache.layers]
    return size_of(tensor for pair in kept for tensor in pair)


Token: TypeAlias = Int64[Tensor, " 1 1"]
Cache: TypeAlias = Mapping[str, Any]

PROMPT = 128
"""Tokens of the prompt."""
ANSWER = 16
"""Tokens that are made after it."""
ROUNDS = 3
"""Rounds whose median counts; one more goes before them, and doesn't count."""


def speeds(
    model: PreTrainedModel, base: PreTrainedModel | None, *, rounds: int = ROUNDS
) -> tuple[Speed, Speed | None]:
    """A model's speed and its base's, taking turns, so that what slows the machine slows both.

    One text at a time: a prompt of `PROMPT` tokens, as many as the model takes if those are fewer,
    and greedy decoding with the KV cache after it. Medians.
    """
    turns = [_Turn(one) for one in (model, base) if one is not None]
    for number in range(rounds + 1):
        for turn in turns if number % 2 else reversed(turns):
            turn.run(counts=number > 0)
    found = [turn.speed() for turn in turns]
    return found[0], (found[1] if base is not None else None)


@final
class _Turn:
    """One model's rounds."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = PROMPT + ANSWER if longest is None else min(longest, PROMPT + ANSWER)
        self.answer = max(1, min(ANSWER, room - 1))
        length = max(1, room - self.answer)
        weight = embeddings(model)
        made = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, len(weight), (1, length), generator=made)
        self.tokens = tokens.to(weight.device)
        self.prefill: list[float] = []
        self.decoding: list[float] = []

    @torch.no_grad()
    def run(self, *, counts: bool) -> None:
        """Read the prompt, and write the answer."""
        start = self._now()
        token, cache = self._next(self.tokens, {})
        read = self._now()
        for _ in range(self.answer):
            token, cache = self._next(token, cache)
        end = self._now()
        if counts:
            self.prefill.append(read - start)
            self.decoding.append(end - read)

    def speed(self) -> Speed:
        """The medians."""
        return Speed(
            self.tokens.shape[1] / median(self.prefill), self.answer / median(self.decoding)
        )

    def _next(self, tokens: Int64[Tensor, " 1 length"], cache: Cache) -> tuple[Token, Cache]:
        """The likeliest next token, and the cache by the name that this transformers has for it."""
        forward: Callable[..., Any] = self.model
        made = forward(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)
        name = next(name for name in ("cache", "past_key_values") if name in made)
        return made.logits[:, -1].argmax(dim=-1, keepdim=True), {name: made[name]}

    def _now(self) -> float:
        """The time once all that was begun is done."""
        if self.tokens.is_cuda:
            torch.cuda.synchronize(self.tokens.device)
        return time.perf_counter()
