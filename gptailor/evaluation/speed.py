"""The costs of a live model: bytes of the KV cache for each token, and time."""

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
from gptailor.evaluation.live.content_keys import size_of
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import embeddings, position_count
from gptailor.evaluation.scores import Score, Speed
from gptailor.plan.plan import Plan
from gptailor.program.compile import compile_plan
from gptailor.program.sources import Checked


@torch.no_grad()
def cache_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of one token of one sequence in the KV cache, over all layers.

    The size is measured on a cache of one token, so that it fits the architecture's own attention.
    A layer with a full window needs no more.
    """
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    [cache] = _next(model, token, {})[1].values()
    # A layer that is an MLP alone never fills its place.
    kept = [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]
    return size_of(tensor for pair in kept for tensor in pair)


Token: TypeAlias = Int64[Tensor, " 1 1"]

PROMPT = 128
"""Tokens of the prompt."""
ANSWER = 16
"""Tokens generated after the prompt."""
ROUNDS = 3
"""Rounds of a median; a round before them doesn't count."""


def speeds(*models: PreTrainedModel, rounds: int = ROUNDS) -> list[Speed]:
    """Return the speeds of models, such as a plan's and its base's, measured by turns.

    A slow moment of the machine then slows all. Each runs one text: a prompt of `PROMPT` tokens,
    or as many as the model takes, and greedy decoding with the KV cache after it. The speeds are
    medians.
    """
    texts = [_text(model) for model in models]
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    for number in range(rounds + 1):
        for at in range(len(models)) if number % 2 else reversed(range(len(models))):
            times[at].append(_round(models[at], *texts[at]))
    results = []
    for (tokens, answer), rows in zip(texts, times, strict=True):
        prefill, decoding = (median(seconds) for seconds in zip(*rows[1:], strict=True))
        results.append(Speed(tokens.shape[1] / prefill, answer / decoding))
    return results


def _text(model: PreTrainedModel) -> tuple[Int64[Tensor, " 1 length"], int]:
    """Return the prompt, and the number of tokens to generate after it."""
    longest = position_count(model.config)
    room = PROMPT + ANSWER if longest is None else min(longest, PROMPT + ANSWER)
    answer = max(1, min(ANSWER, room - 1))
    weight = embeddings(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, len(weight), (1, max(1, room - answer)), generator=generator)
    return tokens.to(weight.device), answer


@torch.no_grad()
def _round(
    model: PreTrainedModel, tokens: Int64[Tensor, " 1 length"], answer: int
) -> tuple[float, float]:
    """Return the seconds of reading the prompt, and of writing the answer."""
    start = _now(tokens)
    token, cache = _next(model, tokens, {})
    read = _now(tokens)
    for _ in range(answer):
        token, cache = _next(model, token, cache)
    return read - start, _now(tokens) - read


def _next(
    forward: Callable[..., Any], tokens: Int64[Tensor, " 1 length"], cache: Mapping[str, Any]
) -> tuple[Token, Mapping[str, Any]]:
    """Return the likeliest next token, and the cache by its name in this transformers."""
    output = forward(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache)
    name = next(name for name in ("cache", "past_key_values") if name in output)
    return output.logits[:, -1].argmax(dim=-1, keepdim=True), {name: output[name]}


def _now(tokens: Tensor) -> float:
    """Return the time after all work on the tokens' device is done."""
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return time.perf_counter()


def latency_score(speed: Speed) -> Score:
    """Return the seconds a token of decoding: a median without a known error."""
    return Score(1 / speed.decoding, math.inf, 0)


@final
class Latencies:
    """Seconds a token of decoding of a search's plans, measured once for all plans of one shape.

    The base's latency is measured first. A plan's latency is its share of the base's in the same
    rounds, times the base's latency. So a machine that is slow for a while slows no plan. `known`
    has the latencies by shape. `on_measured` is called after each new measurement.
    """

    def __init__(
        self, stitch: Callable[[Plan], Stitched], models: Mapping[str, Opened], base: Plan
    ) -> None:
        self.stitch = stitch
        self.models = models
        self.base = base
        self.known: dict[str, float] = {}
        self.on_measured: Callable[[Mapping[str, float]], None] = lambda latencies: None

    def score(self, plan: Plan) -> Score:
        """Return the latency of a closed plan."""
        base, shape = self._shape(self.base), self._shape(plan)
        if base not in self.known:
            [base_speed] = speeds(self.stitch(self.base).model)
            self.known[base] = 1 / base_speed.decoding
            self.on_measured(self.known)
        if shape not in self.known:
            speed, base_speed = speeds(*(self.stitch(p).model for p in (plan, self.base)))
            self.known[shape] = base_speed.decoding / speed.decoding * self.known[base]
            self.on_measured(self.known)
        return Score(self.known[shape], math.inf, 0)

    def _shape(self, plan: Plan) -> str:
        """Return a digest of all that affects a plan's speed: tensor shapes, kinds of layers."""
        compiled = compile_plan(Checked.of(plan, self.models))
        specs = [(o.spec.name, o.spec.dtype, o.spec.shape) for o in compiled.program.outputs]
        record = json.dumps([specs, compiled.config], sort_keys=True, default=str)
        return hashlib.sha256(record.encode()).hexdigest()[:16]
