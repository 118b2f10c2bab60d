"""Run works through live models, all batches layer by layer: `Evaluator`.

Common beginnings run once: `PrefixCache` may keep the hidden states of all batches after layers
where the paths of known plans part, within a budget of bytes. Each work's numbers are computed from
the hidden states after the last layer, some rows at a time. `block_influence` measures how much
each layer turns the hidden states.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import takewhile
from typing import TypeAlias, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from gptailor.evaluation.forward.recording import head_logits, record_calls
from gptailor.evaluation.forward.requests import (
    Batch,
    Results,
    Share,
    Work,
    pack,
)
from gptailor.evaluation.live.content_keys import ModelContents, size_of
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import embeddings
from gptailor.evaluation.scores import Failure, NotANumberError
from gptailor.plan.faults import TailorError

BATCH_TOKENS = 8192
"""Tokens of a batch, padding included."""

LOGITS = {"cpu": 2**26}
"""Bytes of float32 logits at once, by kind of device."""
LOGITS_ELSEWHERE = 2**29

PACKS = 12
"""The number of sets of works, such as fidelities and their parts, with kept batches."""

PATHS = 128
"""Plans with remembered layers, to find where later plans part from them."""

LayerPath = tuple[Hashable, ...]
"""A plan's works, its start, and its layers; or the beginning of that."""
_BEFORE = 2
"""Entries of a path before its layers."""

_Plan = TypeVar("_Plan", bound=ModelContents | Stitched)
Observe: TypeAlias = Callable[[int, Batch, Tensor, Tensor], None]
"""Receives a layer's number, and the hidden states of a batch before the layer and after it."""


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
        self._packed = lru_cache(PACKS)(pack)

    def run(self, live: Stitched, works: Sequence[Work]) -> Results | Failure:
        """Measure the works on one live model."""
        [(_, _, result)] = self.run_all({0: live}, works, lambda plan: plan)
        return result

    def run_all(
        self,
        plans: Mapping[int, _Plan],
        works: Sequence[Work],
        stitch: Callable[[_Plan], Stitched],
    ) -> Iterator[tuple[int, Stitched | Failure, Results | Failure]]:
        """Measure the works on each plan, with equal beginnings one after another.

        Yield each plan's number, the live model that `stitch` makes of the plan, and its result, as
        soon as the result is ready. A plan without a live model has the failure twice. The results
        equal `run`'s.
        """
        asked = tuple(works)
        paths: dict[int, LayerPath] = {
            number: (asked, plan.start, *plan.layers) for number, plan in plans.items()
        }
        self._prefixes.expect(paths.values())
        order = in_order(paths)
        try:
            while order:
                number = order.pop(0)
                self._prefixes.begin(paths[number])
                yield number, *self._stitched(partial(stitch, plans[number]), asked, paths[number])
        finally:
            for number in order:
                self._prefixes.begin(paths[number])

    @torch.no_grad()
    def block_influence(self, live: Stitched, works: Sequence[Work]) -> tuple[float, ...]:
        """Return 1 − the mean cosine of input and output for each layer, from one forward pass.

        The mean is over the hidden states that predict the works' tokens, in float64. Errors raise.
        """
        batches = self._batches(live, tuple(works), self.batch_tokens)
        sums = [0.0] * len(live.layers)

        def observe(index: int, batch: Batch, *states: Tensor) -> None:
            places = batch.wanted.to(self.device)
            before, after = (state.flatten(0, 1)[places].double() for state in states)
            sums[index] += float(torch.cosine_similarity(before, after, dim=-1).sum())

        self._through(live, batches, None, observe)
        count = sum(len(batch.wanted) for batch in batches)
        return tuple(1 - total / count for total in sums)

    def _stitched(
        self, stitch: Callable[[], Stitched], works: tuple[Work, ...], path: LayerPath
    ) -> tuple[Stitched | Failure, Results | Failure]:
        live = attempt(stitch)
        if isinstance(live, Failure):
            return live, live
        return live, self._results(live, works, path) if works else []

    @torch.no_grad()
    def _results(
        self, live: Stitched, works: tuple[Work, ...], path: LayerPath
    ) -> Results | Failure:
        """Return all results, with batches half as large if memory runs out."""
        smaller = max(1, self.batch_tokens // 2)
        for batch_tokens, known in ((self.batch_tokens, path), (smaller, None)):
            result = attempt(partial(self._values, live, works, batch_tokens, known))
            if isinstance(result, Failure):
                self._prefixes.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            if not isinstance(result, Failure) or result.reason != "memory":
                break
        return result

    def _values(
        self, live: Stitched, works: tuple[Work, ...], batch_tokens: int, path: LayerPath | None
    ) -> Results | Failure:
        batches = self._batches(live, works, batch_tokens)
        hidden = self._through(live, batches, path)
        vocabulary: int = live.model.config.get_text_config().vocab_size
        most = max(1, LOGITS.get(self.device.type, LOGITS_ELSEWHERE) // (4 * vocabulary))
        step = most * batch_tokens // self.batch_tokens
        head = partial(head_logits, live)
        tables: dict[int, Tensor] = {}
        for batch, states in zip(batches, hidden, strict=True):
            for share, logits in _shares(batch, states, head, max(1, step)):
                work = works[share.work]
                values = _measured(work, share, logits)
                if share.work not in tables:
                    tables[share.work] = values.new_empty(work.rows[-1], values.shape[1])
                tables[share.work][share.numbers.to(values.device)] = values
        return _results(works, tables)

    def _through(
        self,
        live: Stitched,
        batches: Sequence[Batch],
        path: LayerPath | None,
        observe: Observe | None = None,
    ) -> list[Tensor]:
        """Return the hidden states of all batches after the last layer."""
        partings = self._prefixes.partings(path) if path else ()
        depth, kept = self._prefixes.latest(path) if path else (0, None)
        count = len(embeddings(live.model))
        highest = max((batch.highest for batch in batches), default=0)
        if highest >= count:  # on a GPU the process would lose the device
            raise ValueError(f"token {highest} is outside the model's {count} embeddings")
        starts, calls = record_calls(live, (b.tokens.to(self.device) for b in batches))
        hidden = starts if kept is None else [state.to(self.device) for state in kept]
        del starts, kept
        self.layers_saved += depth
        for index in range(depth, len(live.layers)):
            with live.layer(index) as layer:
                for number, batch in enumerate(batches):
                    before = hidden[number]
                    hidden[number] = calls[number][index].of(layer, before)
                    if observe:
                        observe(index, batch, before, hidden[number])
                    del before
            self.layers_run += 1
            if path and index + 1 in partings:
                self._prefixes.offer(path, index + 1, hidden)
        return hidden

    def _batches(
        self, live: Stitched, works: tuple[Work, ...], batch_tokens: int
    ) -> tuple[Batch, ...]:
        return self._packed(works, batch_tokens, rotation_edge(live.model.config))


def _shares(
    batch: Batch,
    hidden: Float[Tensor, " batch length width"],
    head: Callable[[Tensor], Tensor],
    step: int,
) -> Iterator[tuple[Share, Float[Tensor, " n vocab"]]]:
    """Yield shares of the batch's wanted rows with logits, which are made for `step` rows at once.

    A share's places are places in its logits.
    """
    rows = hidden.flatten(0, 1)[batch.wanted.to(hidden.device)]
    size = -(-len(rows) // max(-(-len(rows) // step), 1))
    for start in range(0, len(rows), size):
        logits = head(rows[start : start + size])
        for share in batch.shares:
            for part in share.between(start, start + len(logits), most=step):
                yield part, logits


def _measured(
    work: Work, share: Share, logits: Float[Tensor, " n vocab"]
) -> Float[Tensor, " rows k"]:
    """Return the work's numbers of its share of the rows."""
    everything = torch.equal(share.pick, torch.arange(len(logits)))
    picked = logits if everything else logits[share.pick.to(logits.device)]
    values = work.measure(picked, share.targets.to(logits.device), share.numbers + work.before)
    if values.dim() != 2 or len(values) != len(picked):
        shape = list(values.shape)
        raise ValueError(f"a measure of {len(picked)} rows returned {shape} numbers")
    return values.float()


def _results(works: Sequence[Work], tables: Mapping[int, Tensor]) -> Results | Failure:
    """Return each request's numbers, or a Failure if a number is NaN.

    `tables` have the works' numbers, a row for each prediction; a work without requests has no row.
    """
    results: Results = []
    for number, work in enumerate(works):
        values = tables.get(number, torch.empty(0, 1)).cpu()
        if bad := int(values.isnan().any(dim=1).sum()):
            return Failure("nan", f"{bad} of {len(values)} predictions are NaN")
        results.append(list(torch.split(values, [request.predicted for request in work.requests])))
    return results


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
    """Call `do`, and return its value, or its exception as a Failure.

    The failure has the exception's type and message; our errors need no type. torch has an
    exception type for CUDA's allocator alone. The errors of the CPU's allocator and of cuBLAS are
    recognised by their messages.
    """
    try:
        return do()
    except NotANumberError as error:
        return Failure("nan", str(error))
    except TailorError as error:
        return Failure("error", str(error))
    except Exception as error:  # noqa: BLE001 (a trial's failure is a value, whatever it was)
        words = str(error).strip() or "no message"
        matches = isinstance(error, RuntimeError) and any(part in words for part in _OUT_OF_MEMORY)
        full = matches or isinstance(error, MemoryError | torch.OutOfMemoryError)
        return Failure("memory" if full else "error", f"{type(error).__name__}: {words}")


# --------------------------------------------------------------------- where plans part


@final
class PrefixCache:
    """Hidden states where plans part, within `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._begun: deque[LayerPath] = deque(maxlen=PATHS)
        """Plans that have run lately, the latest last."""
        self._ahead: list[LayerPath] = []
        """Plans that have not begun."""
        self._states: dict[LayerPath, list[Tensor]] = {}
        """States after beginnings, the latest used last."""

    @property
    def bytes(self) -> int:
        """The bytes of all states."""
        return sum(map(size_of, self._states.values()))

    def clear(self) -> None:
        """Drop all states, but remember which plans have run and which will run."""
        self._states.clear()

    def expect(self, paths: Collection[LayerPath]) -> None:
        """Add plans that will run."""
        self._ahead.extend(paths)

    def begin(self, path: LayerPath) -> None:
        """Note that a plan runs now, or never will. Plans that ran long ago are forgotten."""
        self._ahead.remove(path)
        self._begun.append(path)

    def partings(self, path: LayerPath) -> set[int]:
        """Return the layers' numbers after which other known plans part from the latest, or end."""
        others = [*self._ahead, *self._begun][:-1]
        return {_layers_alike(path, other) for other in others}

    def latest(self, path: LayerPath) -> tuple[int, list[Tensor] | None]:
        """Return the most layers that a kept state spares the plan, and that state."""
        for end in range(len(path), _BEFORE, -1):
            if (state := self._states.pop(path[:end], None)) is not None:
                self._states[path[:end]] = state
                return end - _BEFORE, list(state)
        return 0, None

    def offer(self, path: LayerPath, depth: int, hidden: Sequence[Tensor]) -> None:
        """Keep the plan's hidden states after `depth` layers, if that pays."""
        beginning, size = path[: _BEFORE + depth], size_of(hidden)
        if beginning in self._states or size > self.budget:
            return
        while self.bytes + size > self.budget:
            least = min(self._states, key=self._saving)
            if self._saving(least) > self._saving(beginning):
                return
            del self._states[least]
        self._states[beginning] = list(hidden)

    def _saving(self, beginning: LayerPath) -> int:
        """Return the layers that a state spares, over the plans that have not begun."""
        length = len(beginning)
        ahead = sum(path[:length] == beginning for path in self._ahead)
        shorter = (len(kept) for kept in self._states if kept == beginning[: len(kept)])
        above = max((kept for kept in shorter if kept < length), default=_BEFORE)
        return ahead * (length - above)


def _layers_alike(path: LayerPath, other: LayerPath) -> int:
    """Return the number of layers with which two plans begin; below 0 if they begin otherwise."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))
    return sum(1 for _ in alike) - _BEFORE


def in_order(paths: Mapping[int, LayerPath]) -> list[int]:
    """Return the paths' numbers, with equal beginnings together and stable otherwise."""
    ranks: dict[Hashable, int] = {}
    lines = {n: [ranks.setdefault(key, len(ranks)) for key in path] for n, path in paths.items()}
    return sorted(paths, key=lines.__getitem__)
