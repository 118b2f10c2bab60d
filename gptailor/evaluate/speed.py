"""What a live model takes: its parameters, its KV cache's bytes for each token, and its time."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.live.content_keys import size_of
from gptailor.evaluate.live.stitch import Stitched
from gptailor.evaluate.live.template import embeddings, position_count
from gptailor.evaluate.scores import Score, Speed
from gptailor.plan.plan import Plan
from gptailor.program.compile import compile_plan
from gptailor.program.sources import Checked


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
    models = [model] if base is None else [model, base]
    texts = [_text(one) for one in models]
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    for number in range(rounds + 1):
        for at in range(len(models)) if number % 2 else reversed(range(len(models))):
            times[at].append(_round(models[at], *texts[at]))
    found = []
    for (tokens, answer), rows in zip(texts, times, strict=True):
        prefill, decoding = (median(each) for each in zip(*rows[1:], strict=True))
        found.append(Speed(tokens.shape[1] / prefill, answer / decoding))
    return found[0], (found[1] if base is not None else None)


def _text(model: PreTrainedModel) -> tuple[Int64[Tensor, " 1 length"], int]:
    """The prompt, and how many tokens are made after it."""
    longest = position_count(model.config)
    room = PROMPT + ANSWER if longest is None else min(longest, PROMPT + ANSWER)
    answer = max(1, min(ANSWER, room - 1))
    weight = embeddings(model)
    made = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, len(weight), (1, max(1, room - answer)), generator=made)
    return tokens.to(weight.device), answer


@torch.no_grad()
def _round(
    model: PreTrainedModel, tokens: Int64[Tensor, " 1 length"], answer: int
) -> tuple[float, float]:
    """The seconds that reading the prompt takes, and writing the answer."""
    start = _now(tokens)
    token, cache = _next(model, tokens, {})
    read = _now(tokens)
    for _ in range(answer):
        token, cache = _next(model, token, cache)
    return read - start, _now(tokens) - read


def _next(
    forward: Callable[..., Any], tokens: Int64[Tensor, " 1 length"], cache: Mapping[str, Any]
) -> tuple[Token, Mapping[str, Any]]:
    """The likeliest next token, and the cache by the name that this transformers has for it."""
    made = forward(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)
    name = next(name for name in ("cache", "past_key_values") if name in made)
    return made.logits[:, -1].argmax(dim=-1, keepdim=True), {name: made[name]}


def _now(tokens: Tensor) -> float:
    """The time once all that was begun on the tokens' device is done."""
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return time.perf_counter()


def latency_score(speed: Speed) -> Score:
    """Seconds a token of decoding: a median of rounds, of which no error is known."""
    return Score(1 / speed.decoding, math.inf, 0)


@final
class Latencies:
    """Seconds a token of decoding of a search's plans, measured once for all plans of one shape.

    The base's are measured first. A plan's are its share of the base's in the same rounds times
    those, so that what slows the machine for a while slows no plan. `known` are those by shape;
    `on_measured` hears of each that is new.
    """

    def __init__(
        self, stitch: Callable[[Plan], Stitched], models: Mapping[str, Opened], base: Plan
    ) -> None:
        self.stitch = stitch
        self.models = models
        self.base = base
        self.known: dict[str, float] = {}
        self.on_measured: Callable[[Mapping[str, float]], None] = lambda known: None

    def score(self, plan: Plan) -> Score:
        """The latency of a closed plan."""
        base, shape = self._shape(self.base), self._shape(plan)
        if base not in self.known:
            live = self.stitch(self.base).model
            self._put(base, 1 / speeds(live, None)[0].decoding)
        if shape not in self.known:
            live, beside = (self.stitch(one).model for one in (plan, self.base))
            mine, theirs = speeds(live, beside)
            assert theirs is not None, "it was given"
            self._put(shape, theirs.decoding / mine.decoding * self.known[base])
        return Score(self.known[shape], math.inf, 0)

    def _put(self, shape: str, seconds: float) -> None:
        self.known[shape] = seconds
        self.on_measured(self.known)

    def _shape(self, plan: Plan) -> str:
        """A digest of all that a plan's speed depends on: shapes of tensors, kinds of layers."""
        compiled = compile_plan(Checked.of(plan, self.models))
        specs = [(o.spec.name, o.spec.dtype, o.spec.shape) for o in compiled.program.outputs]
        said = json.dumps([specs, compiled.config], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]
