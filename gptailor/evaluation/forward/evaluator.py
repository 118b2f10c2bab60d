"""Run works through live models, all batches layer by layer: `Evaluator`.

Common beginnings run once. `Gathering` computes each work's numbers from the hidden states after
the last layer, some rows at a time. `block_influence` measures how much each layer turns the hidden
states.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from gptailor.evaluation.forward.prefix_cache import LayerPath, PrefixCache, PrefixNode, in_order
from gptailor.evaluation.forward.recording import Call, head_logits, record_calls, wraps
from gptailor.evaluation.forward.requests import (
    Batch,
    LiveModel,
    Packed,
    Results,
    Share,
    Work,
    pack,
)
from gptailor.evaluation.live.template import embeddings
from gptailor.evaluation.scores import Failure, NotANumberError
from gptailor.plan.faults import TailorError


@final
class Gathering:
    """The works' numbers, collected batch by batch; logits are made for `step` rows at once."""

    def __init__(
        self, logits: Callable[[Tensor], Tensor], works: Sequence[Work], step: int
    ) -> None:
        self.logits = logits
        self.works = works
        self.step = step
        self.measured: list[list[tuple[Tensor, Tensor]]] = [[] for _ in works]

    def add(self, batch: Batch, hidden: Float[Tensor, " batch length width"]) -> None:
        """Measure the batch's wanted rows."""
        rows = hidden.flatten(0, 1)[batch.wanted.to(hidden.device)]
        size = -(-len(rows) // max(-(-len(rows) // self.step), 1))
        for start in range(0, len(rows), size):
            logits = self.logits(rows[start : start + size])
            for share in batch.shares:
                for part in share.between(start, start + len(logits), most=self.step):
                    self._measure(part, logits)

    def _measure(self, share: Share, logits: Float[Tensor, " n vocab"]) -> None:
        everything = torch.equal(share.pick, torch.arange(len(logits)))
        picked = logits if everything else logits[share.pick.to(logits.device)]
        measure = self.works[share.work].measure
        values = measure(picked, share.targets.to(logits.device), share.rows)
        if values.dim() != 2 or len(values) != len(picked):
            shape = list(values.shape)
            raise ValueError(f"a measure of {len(picked)} rows returned {shape} numbers")
        self.measured[share.work].append((share.rows.number, values.float()))

    def results(self, packed: Packed) -> Results | Failure:
        """Return each request's numbers, or a Failure if a number is NaN."""
        results: Results = []
        for requests, chunks in zip(packed.asked, self.measured, strict=True):
            if not requests:
                results.append([])
                continue
            order = torch.cat([numbers for numbers, _ in chunks])
            values = torch.cat([values for _, values in chunks]).cpu()
            if bad := int(values.isnan().any(dim=1).sum()):
                return Failure("nan", f"{bad} of {len(values)} predictions are NaN")
            table = torch.empty_like(values)
            table[order] = values
            results.append(list(torch.split(table, [request.predicted for request in requests])))
        return results


BATCH_TOKENS = 8192
"""Tokens of a batch, padding included."""

LOGITS = {"cpu": 2**26}
"""Bytes of float32 logits at once, by kind of device."""
LOGITS_ELSEWHERE = 2**29

PACKS = 12
"""Sets of works (fidelities and their parts, for example) whose batches are kept."""


@final
class Evaluator:
    """Runs plans over works, with `cache` bytes for hidden states where plans part.

    `layers_run` counts the layers that ran, over all plans so far. `layers_saved` counts the layers
    that a kept state spared.
    """

    def __init__(
        self,
        *,
        batch_tokens: int = BATCH_TOKENS,
        cache: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch_tokens = batch_tokens
        self.device = torch.device(device)
        self.layers_run = 0
        self.layers_saved = 0
        self._prefixes = PrefixCache(cache)
        self._packs: list[tuple[tuple[Hashable, ...], Packed]] = []
        self._wraps: dict[type, bool] = {}

    def run(self, plan: LiveModel, works: Sequence[Work]) -> Results | Failure:
        """Measure the works on one plan."""
        [(_, result)] = self.run_all({0: plan}, works)
        return result

    def run_all(
        self, population: Mapping[int, LiveModel], works: Sequence[Work]
    ) -> Iterator[tuple[int, Results | Failure]]:
        """Measure the works on each plan, with equal beginnings one after another.

        Yields each plan's number with its result, as soon as the result is ready.
        The results equal those of `run`.
        """
        paths: dict[int, LayerPath] = {
            number: (self._packed(plan, works, self.batch_tokens), plan.start, *plan.layers)
            for number, plan in population.items()
        }
        leaves = dict(zip(paths, self._prefixes.expect(paths.values()), strict=True))
        order = in_order(paths)
        try:
            while order:
                number = order.pop(0)
                self._prefixes.begin(leaves[number])
                yield number, self._results(population[number], works, leaves[number])
                self._prefixes.trim()
        finally:
            for number in order:
                self._prefixes.begin(leaves[number])

    @torch.no_grad()
    def block_influence(self, plan: LiveModel, works: Sequence[Work]) -> tuple[float, ...]:
        """Return 1 − the mean cosine of input and output for each layer, from one forward pass.

        The mean is over the hidden states that predict the works' tokens, in float64. Errors raise.
        """
        packed = self._packed(plan, works, self.batch_tokens)
        hidden, calls = self._record(plan, packed, self._wrapped(plan))
        sums = [0.0] * len(plan.layers)
        for index in range(len(plan.layers)):
            with plan.layer(index) as layer:
                for number, batch in enumerate(packed.batches):
                    states = hidden[number], calls[number][index].of(layer, hidden[number])
                    hidden[number] = states[1]
                    places = batch.wanted.to(states[0].device)
                    before, after = (state.flatten(0, 1)[places].double() for state in states)
                    sums[index] += float(torch.cosine_similarity(before, after, dim=-1).sum())
        count = sum(len(batch.wanted) for batch in packed.batches)
        return tuple(1 - total / count for total in sums)

    @torch.no_grad()
    def _results(
        self, plan: LiveModel, works: Sequence[Work], leaf: PrefixNode
    ) -> Results | Failure:
        """Return all results, with batches half as large if memory runs out."""
        smaller = max(1, self.batch_tokens // 2)
        for batch_tokens, prefix in ((self.batch_tokens, leaf), (smaller, None)):
            result = attempt(partial(self._values, plan, works, batch_tokens, prefix))
            if isinstance(result, Failure):
                self._prefixes.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            if not isinstance(result, Failure) or result.reason != "memory":
                break
        return result

    def _values(
        self, plan: LiveModel, works: Sequence[Work], batch_tokens: int, leaf: PrefixNode | None
    ) -> Results | Failure:
        packed = self._packed(plan, works, batch_tokens)
        wrapped = self._wrapped(plan)
        hidden = self._through(plan, packed, leaf, wrapped)
        vocabulary: int = plan.model.config.get_text_config().vocab_size
        most = max(1, LOGITS.get(self.device.type, LOGITS_ELSEWHERE) // (4 * vocabulary))
        step = most * batch_tokens // self.batch_tokens
        head = partial(head_logits, plan.model, wraps=wrapped)
        gathering = Gathering(head, works, max(1, step))
        for batch, states in zip(packed.batches, hidden, strict=True):
            gathering.add(batch, states)
        return gathering.results(packed)

    def _through(
        self, plan: LiveModel, packed: Packed, leaf: PrefixNode | None, wrapped: bool
    ) -> list[Tensor]:
        depth, kept = self._prefixes.latest(leaf) if leaf else (0, None)
        starts, calls = self._record(plan, packed, wrapped)
        hidden = starts if kept is None else [state.to(self.device) for state in kept]
        del starts, kept
        self.layers_saved += depth
        for index in range(depth, len(plan.layers)):
            with plan.layer(index) as layer:
                for number, batch_calls in enumerate(calls):
                    hidden[number] = batch_calls[index].of(layer, hidden[number])
            self.layers_run += 1
            if leaf:
                self._prefixes.offer(leaf, index + 1, hidden)
        return hidden

    def _record(
        self, plan: LiveModel, packed: Packed, wrapped: bool
    ) -> tuple[list[Tensor], list[list[Call]]]:
        count = len(embeddings(plan.model))
        if packed.highest >= count:  # on a GPU the process would lose the device
            raise ValueError(f"token {packed.highest} is outside the model's {count} embeddings")
        tokens = (batch.tokens.to(self.device) for batch in packed.batches)
        return record_calls(plan.model, tokens, wraps=wrapped)

    def _wrapped(self, plan: LiveModel) -> bool:
        kind = type(plan.model)
        if kind not in self._wraps:
            with plan.layer(0) as layer:
                self._wraps[kind] = wraps(plan.model, layer)
        return self._wraps[kind]

    def _packed(self, plan: LiveModel, works: Sequence[Work], batch_tokens: int) -> Packed:
        edge = rotation_edge(plan.model.config)
        asked = tuple(tuple(work.requests) for work in works)
        key = batch_tokens, edge, tuple(work.cuts for work in works)
        for pack_key, packed in self._packs:
            if pack_key == key and packed.asked == asked:
                return packed
        packed = pack(works, batch_tokens, edge)
        self._packs = [*self._packs[1 - PACKS :], (key, packed)]
        return packed


def rotation_edge(config: PretrainedConfig) -> int | None:
    """Return the length beyond which a batch's longest row changes all rows' rotations."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in [parameters, *nested]:
        if rope.get("rope_type") in ("longrope", "dynamic"):
            return int(rope.get("original_max_position_embeddings", config.max_position_embeddings))
    return None


_Value = TypeVar("_Value")
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")
"""Parts of the messages of `RuntimeError`s from the allocators of the CPU, CUDA and cuBLAS."""


def attempt(do: Callable[[], _Value]) -> _Value | Failure:
    """Call `do`, and return its value, or its exception as a Failure."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001 (a trial's failure is a value, whatever it was)
        return failure(error)


def failure(error: Exception) -> Failure:
    """Return the exception as a Failure with its type and message; our errors need no type.

    torch has an exception type for CUDA's allocator alone. The errors of the CPU's allocator and of
    cuBLAS are recognised by their messages.
    """
    if isinstance(error, NotANumberError | TailorError):
        return Failure("nan" if isinstance(error, NotANumberError) else "error", str(error))
    words = str(error).strip() or "no message"
    matches = isinstance(error, RuntimeError) and any(part in words for part in _OUT_OF_MEMORY)
    full = matches or isinstance(error, MemoryError | torch.OutOfMemoryError)
    return Failure("memory" if full else "error", f"{type(error).__name__}: {words}")
