"""Works through live models: all batches layer by layer, common beginnings once: `Evaluator`.

`Gathering` makes the numbers of each work of the hidden states after the last layer, some rows at
a time; `block_influence` measures how much each layer turns them.
"""

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from gptailor.evaluate.forward.prefix_cache import LayerPath, PrefixCache, PrefixNode, in_order
from gptailor.evaluate.forward.recording import Call, head_logits, record_calls, wraps
from gptailor.evaluate.forward.requests import Batch, LiveModel, Packed, Results, Share, Work, pack
from gptailor.evaluate.live.template import embeddings
from gptailor.evaluate.scores import Failure, NotANumberError
from gptailor.plan.faults import TailorError


@final
class Gathering:
    """The works' numbers as they come, batch by batch; logits are made for `step` rows at once."""

    def __init__(
        self, logits: Callable[[Tensor], Tensor], works: Sequence[Work], step: int
    ) -> None:
        self.logits = logits
        self.works = works
        self.step = step
        self.found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in works]

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
        mine = logits if everything else logits[share.pick.to(logits.device)]
        measure = self.works[share.work].measure
        values = measure(mine, share.targets.to(logits.device), share.rows)
        if values.dim() != 2 or len(values) != len(mine):
            shape = list(values.shape)
            raise ValueError(f"a measure of {len(mine)} rows returned {shape} numbers")
        self.found[share.work].append((share.rows.number, values.float()))

    def results(self, packed: Packed) -> Results | Failure:
        """Each request's numbers; a Failure where one is NaN."""
        results: Results = []
        for requests, found in zip(packed.asked, self.found, strict=True):
            if not requests:
                results.append([])
                continue
            order = torch.cat([numbers for numbers, _ in found])
            values = torch.cat([values for _, values in found]).cpu()
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
"""Sets of works (fidelities and their parts, say) whose batches stay made."""


@final
class Evaluator:
    """Runs plans over works, with `cache` bytes for hidden states where plans part.

    `cache_device` holds them (`None`: the device). `layers_run` and `layers_saved` count, over all
    plans so far, the layers that ran and those that a kept state spared.
    """

    def __init__(
        self,
        *,
        batch_tokens: int = BATCH_TOKENS,
        cache: int = 0,
        device: torch.device | str = "cpu",
        cache_device: torch.device | str | None = None,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.device = torch.device(device)
        self.layers_run = 0
        self.layers_saved = 0
        place = None if cache_device is None else torch.device(cache_device)
        self._prefixes = PrefixCache(cache, place)
        self._packs: list[tuple[tuple[Hashable, ...], Packed]] = []
        self._wraps: dict[type, bool] = {}

    def run(self, plan: LiveModel, works: Sequence[Work]) -> Results | Failure:
        """What each work measures of one plan, or why there is nothing."""
        [(_, result)] = self.run_all([plan], works)
        return result

    def run_all(
        self, population: Sequence[LiveModel], works: Sequence[Work]
    ) -> Iterator[tuple[int, Results | Failure]]:
        """The same numbers as `run` has for each plan, those that begin alike one after another.

        Yields each plan's number in the population with its result, as soon as it is there.
        """
        paths: list[LayerPath] = [
            (self._packed(plan, works, self.batch_tokens), plan.start, *plan.layers)
            for plan in population
        ]
        leaves = self._prefixes.expect(paths)
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
        """1 − the mean cosine of a layer's input and output, for each layer, from one forward pass.

        The mean is over the hidden states that predict what the works ask for; in float64. Errors
        raise.
        """
        packed = self._packed(plan, works, self.batch_tokens)
        hidden, calls = self._begun(plan, packed, self._wrapped(plan))
        sums = [0.0] * len(plan.layers)
        for index in range(len(plan.layers)):
            with plan.layer(index) as layer:
                for number, batch in enumerate(packed.batches):
                    states = hidden[number], calls[number][index].of(layer, hidden[number])
                    hidden[number] = states[1]
                    wanted = batch.wanted.to(states[0].device)
                    before, after = (one.flatten(0, 1)[wanted].double() for one in states)
                    sums[index] += float(torch.cosine_similarity(before, after, dim=-1).sum())
        count = sum(len(batch.wanted) for batch in packed.batches)
        return tuple(1 - total / count for total in sums)

    @torch.no_grad()
    def _results(
        self, plan: LiveModel, works: Sequence[Work], leaf: PrefixNode
    ) -> Results | Failure:
        """All results; where memory doesn't suffice, once more in batches half as large."""
        for most, known in ((self.batch_tokens, leaf), (max(1, self.batch_tokens // 2), None)):
            result = attempt(partial(self._values, plan, works, most, known))
            if isinstance(result, Failure):
                self._free()
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
        starts, calls = self._begun(plan, packed, wrapped)
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

    def _begun(
        self, plan: LiveModel, packed: Packed, wrapped: bool
    ) -> tuple[list[Tensor], list[list[Call]]]:
        known = len(embeddings(plan.model))
        if packed.highest >= known:  # on a GPU it would end the process's use of the device
            raise ValueError(f"token {packed.highest} is outside the model's {known} embeddings")
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
        for known, packed in self._packs:
            if known == key and packed.asked == asked:
                return packed
        packed = pack(works, batch_tokens, edge)
        self._packs = [*self._packs[1 - PACKS :], (key, packed)]
        return packed

    def _free(self) -> None:
        self._prefixes.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def rotation_edge(config: PretrainedConfig) -> int | None:
    """The length beyond which the longest row of a batch changes the rotations of all its rows."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    for one in [parameters, *nested]:
        if one.get("rope_type") in ("longrope", "dynamic"):
            return int(one.get("original_max_position_embeddings", config.max_position_embeddings))
    return None


_Made = TypeVar("_Made")
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "not enough memory")
"""In the words of a `RuntimeError` from an allocator: of the CPU, of CUDA, of cuBLAS."""


def attempt(do: Callable[[], _Made]) -> _Made | Failure:
    """What `do` makes, or why it makes nothing."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001 (a trial's failure is a value, whatever it was)
        return failure(error)


def failure(error: Exception) -> Failure:
    """The exception as a value, with its type and its words; errors of ours need no type.

    torch has a type for CUDA's allocator alone; the CPU's and cuBLAS's are told by their words.
    """
    if isinstance(error, NotANumberError | TailorError):
        return Failure("nan" if isinstance(error, NotANumberError) else "error", str(error))
    words = str(error).strip() or "no message"
    known = isinstance(error, RuntimeError) and any(one in words for one in _OUT_OF_MEMORY)
    full = known or isinstance(error, MemoryError | torch.OutOfMemoryError)
    return Failure("memory" if full else "error", f"{type(error).__name__}: {words}")
