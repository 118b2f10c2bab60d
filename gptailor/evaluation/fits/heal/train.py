"""The learning itself: its memory, its loss, and steps of Adam that keep the best state."""

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptailor.checkpoint.tensor import TensorSpec
from gptailor.evaluation.fits.heal.learning import HealError, Learning, NotFiniteError, WholeWeights
from gptailor.evaluation.fits.heal.process_group import ALONE, ProcessGroup
from gptailor.evaluation.fits.heal.teacher import TaughtBatch, TaughtSequences
from gptailor.evaluation.fits.heal.text import STEP_TOKENS, step_tokens
from gptailor.evaluation.fits.kept_tensors import KeptTensors, read_tensors
from gptailor.evaluation.forward.recording import Call, head_logits, record_calls
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import configuration
from gptailor.evaluation.objectives.kl import divergence, grouped
from gptailor.plan.events import OnEvent, Progress, ignore_events, seconds_left
from gptailor.plan.resolved import Healing
from gptailor.program.program import learning_tensors, projections

LOW_RANK_RATE, WHOLE_RATE = 1e-3, 1e-4
"""Adam's rate at its highest, for low-rank changes and for the weights themselves."""
FULL_RATE_LOSS = 0.5
"""The least loss at the start, in nats a token from the teacher, with the full rate.

Nearer to the teacher the rate falls in proportion: steps of the full rate lead away from it
(benchmarks/notes/heal.md).
"""
WARM_UP = 0.1
"""The share of the steps over which the rate rises; then it falls along a cosine, to 0."""
BETAS = (0.9, 0.95)
LONGEST_GRADIENT = 1.0
"""The largest norm of the gradient of all parameters together."""
CHECKS = 4
"""Number of checks on the held-out sequences, after the first one."""
LOGIT_BYTES = 2**26
"""Bytes of float32 logits at once."""
LOW_RANK_BYTES = 24
"""Bytes of a low-rank number: its value, gradient, Adam's two means, the best value so far, and a
temporary of an Adam step."""
WHOLE_BYTES = 30
"""Bytes of a number of whole weights: as before, and its gradient, value and first value in the
layer's dtype."""
HEADS_COPIES = 4
"""Copies of the logits: themselves, their gradient, and temporaries."""
LAYER_COPIES = 8
"""Bytes of an input or output of a projection, twice in float32, or in more copies of fewer."""
SCORES_COPIES = 3
"""Copies of attention's scores in float32: before and after softmax, and a gradient."""
_SAVE_SECONDS = 60.0


# ------------------------------------------------------------------------------------ memory


@final
@dataclass(frozen=True)
class HealingMemory:
    """The student's memory on the device.

    `contents` are the output's, `dtype` is the dtype of its weights on the device, and `length` is
    the number of tokens of a sequence. `limit` bounds the bytes on the device. Without a limit all
    layers' intermediate values stay until the backward pass; with one, one layer's values.
    """

    contents: ModelContents
    healing: Healing
    dtype: torch.dtype
    length: int
    limit: int | None = None

    @property
    def numbers(self) -> int:
        """The number of learned values."""
        rank = self.healing.rank
        shapes = [each[name].shape for each in self._specs for name in learning_tensors(rank, each)]
        if rank is None:
            return sum(map(math.prod, shapes))
        return sum(min(rank, *shape) * sum(shape) for shape in shapes)

    @property
    def _specs(self) -> list[dict[str, TensorSpec]]:
        """The specifications of the tensors of each layer that learns, by their names."""
        layers = [self.contents.layers[index] for index in self.healing.indices]
        return [{output.spec.name: output.spec for output in layer.outputs} for layer in layers]

    @property
    def bytes(self) -> int:
        """The bytes in addition to the weights."""
        size = WHOLE_BYTES if self.healing.rank is None else LOW_RANK_BYTES
        return self.numbers * size + self._activations

    def weights(self) -> int | None:
        """Return the bytes of weights that may be on the device; None means all of them.

        Without a rank all weights stay on the device. Raises HealError (C811) if the weights or the
        learned values don't fit.
        """
        if self.limit is None:
            return None
        least, whole = self._least, self.healing.rank is None
        if self.bytes + least <= self.limit:
            return None if whole else self.limit - self.bytes
        needed = "all its weights" if whole else "its largest layer and its ends"
        message = (
            f"{self.limit:,} bytes are too few for healing: trained weights and workspace need "
            f"{self.bytes:,}, and {needed} {least:,}"
        )
        raise HealError("C811", message, self._remedy())

    def _remedy(self) -> str:
        widest = max(
            (side for each in self._specs for side in projections(each).values()), default=1
        )
        ranks = range(1, min(widest, self.healing.rank or widest) + 1)
        largest = bisect_left(ranks, True, key=lambda rank: not self._fits(rank))
        needed = self.bytes + self._least
        if largest:
            return f"use at most rank {largest}, or give {needed:,} bytes"
        return f"give {needed:,} bytes; no rank fits"

    def _fits(self, rank: int) -> bool:
        other = replace(self, healing=replace(self.healing, rank=rank))
        return self.limit is None or other.bytes + other._least <= self.limit

    # ---------------------------------------------------------------------------- sizes

    @property
    def _least(self) -> int:
        """The bytes of the weights that must be on the device at once."""
        parts = [self.contents.rest, *(content.outputs for content in self.contents.layers)]
        ends, *sizes = (sum(output.spec.elements for output in part) for part in parts)
        layers = sum(sizes) if self.healing.rank is None else max(sizes)
        return (ends + layers) * self.dtype.itemsize

    @property
    def _activations(self) -> int:
        config = configuration(self.contents.config).get_text_config()
        tokens = max(step_tokens(self.healing.tokens), self.length)
        learning = self.contents.layers[min(self.healing.indices) :]
        between = (len(learning) + 1) * tokens * int(config.hidden_size) * 4
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        scores = tokens * self.length * heads * 4 * SCORES_COPIES
        widths = [
            sum(sum(o.spec.shape) for o in content.outputs if len(o.spec.shape) == 2)
            for content in learning
        ]
        layers = [tokens * width * LAYER_COPIES + scores for width in widths]
        inside = sum(layers) if self.limit is None else max(layers)
        return between + inside + LOGIT_BYTES * HEADS_COPIES


# -------------------------------------------------------------------------------------- loss

Head = Callable[[Float[Tensor, " n width"]], Float[Tensor, " n vocab"]]
"""The logits, in float32, of hidden states after the last layer."""


def head_loss(
    head: Head,
    hidden: Float[Tensor, " n width"],
    tokens: Int[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
    step: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, " n width"]]:
    """Return the sum of the rows' divergences, in float64, and its gradient by `hidden`.

    Logits are computed for `step` rows at once and not kept, because the logits of a large
    vocabulary are the largest tensor of all. The head itself doesn't learn.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for start in range(0, len(hidden), step):
        chunk = slice(start, start + step)
        with torch.enable_grad():
            rows = hidden[chunk].detach().requires_grad_(True)
            logits = head(rows)
        with torch.no_grad():
            loss, slope = divergence_and_slope(logits, tokens[chunk].long(), logs[chunk])
        total += loss
        (gradient[chunk],) = torch.autograd.grad(logits, rows, slope)
    return total, gradient


def head_divergence(
    head: Head,
    hidden: Float[Tensor, " n width"],
    tokens: Int[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
    step: int,
) -> Float[Tensor, ""]:
    """Return the sum of the rows' divergences without a gradient, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(hidden), step):
        chunk = slice(start, start + step)
        own = grouped(head(hidden[chunk]), tokens[chunk].long())
        total += divergence(logs[chunk].double(), own.double()).sum()
    return total


def divergence_and_slope(
    logits: Float[Tensor, " n vocab"],
    tokens: Int64[Tensor, " n kept"],
    logs: Float[Tensor, " n groups"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " n vocab"]]:
    """Return Σ p log(p / q) of all rows, and its derivative by the logits, which are overwritten.

    p is the teacher's distribution, q the logits' distribution. r(p) and r(q) are the masses of all
    tokens that aren't kept. The derivative is q − p for a kept token, and q (1 − r(p) / r(q)) for
    another token.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    own = logits.gather(1, tokens) - total
    q = logits.sub_(total).exp_()
    kept = q.gather(1, tokens)
    if logs.shape[1] == tokens.shape[1]:
        loss = divergence(logs.double(), own.double()).sum()
        return loss, q.scatter_add_(1, tokens, -logs.exp())
    q.scatter_(1, tokens, 0.0)
    other = q.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    groups = torch.cat([own, other.log()], dim=1)
    loss = divergence(logs.double(), groups.double()).sum()
    p = logs.exp()
    q.mul_(1 - p[:, -1:] / other)
    return loss, q.scatter_(1, tokens, kept - p[:, :-1])


# ------------------------------------------------------------------------------------- steps


@final
class _WideNorms(TorchFunctionMode):
    """A mode that computes norms and their weights in float32, which autocast on the CPU skips."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.layer_norm:
            args = [_widened(value) for value in args]
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


@final
class Student:
    """A live model, run on batches of one length; the layers from `first` on may learn.

    With `recompute` only the hidden states between layers are kept for the backward pass, and each
    layer runs again there. Streamed layers need this.
    """

    def __init__(self, live: Stitched, first: int, *, recompute: bool) -> None:
        self.live = live
        self.first = first
        self.recompute = recompute
        self.device = live.model.device
        vocabulary: int = live.model.config.get_text_config().vocab_size
        self.step = max(1, LOGIT_BYTES // (4 * vocabulary))

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """Compute products in bfloat16 and sums in float32, if the weights are bfloat16."""
        if self.live.model.dtype == torch.float32:
            yield
            return
        norms = _WideNorms() if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, dtype=self.live.model.dtype), norms:
            yield

    def head(self, hidden: Float[Tensor, " n width"]) -> Float[Tensor, " n vocab"]:
        """Return the logits of hidden states after the last layer."""
        with self._autocast():
            return head_logits(self.live, hidden)

    @torch.no_grad()
    def divergence(self, batch: TaughtBatch) -> float:
        """Return the sum of the counted predictions' divergences from the teacher's."""
        hidden, calls = self._begun(batch.sequences)
        for index, call in enumerate(calls):
            hidden = self._run(index, call, hidden)
        rows = hidden.flatten(0, 1)[batch.counted.to(self.device)]
        return float(head_divergence(self.head, rows, *self._taught(batch), self.step))

    def mean_divergence(self, taught: TaughtSequences, group: ProcessGroup = ALONE) -> float:
        """Return the mean divergence of all counted predictions; a group shares the sequences."""
        total, (first, last) = 0.0, group.share(0, len(taught))
        batch = max(1, STEP_TOKENS // taught.sequences.shape[1])
        for start in range(first, last, batch):
            total += self.divergence(taught.of(start, min(start + batch, last)))
        return group.sum(total) / int(taught.counted.sum())

    def learn(self, batch: TaughtBatch, count: int) -> float:
        """Add the gradient of the divergences' sum, divided by `count`, to the parameters'.

        Returns that quotient.
        """
        hidden, calls = self._begun(batch.sequences)
        before = []
        for index, call in enumerate(calls):
            learns = index >= self.first
            before += [hidden] if learns and self.recompute else []
            with torch.set_grad_enabled(learns and not self.recompute):
                hidden = self._run(index, call, hidden)
        counted = batch.counted.to(self.device)
        places = hidden.detach().flatten(0, 1)
        taught = self._taught(batch)
        loss, row_slopes = head_loss(self.head, places[counted], *taught, self.step)
        slopes = torch.zeros_like(places)
        slopes[counted] = row_slopes / count
        slope = slopes.view_as(hidden)
        if self.recompute:
            self._back(before, calls, slope)
        elif hidden.requires_grad:
            torch.autograd.backward([hidden], [slope])
        return float(loss) / count

    def _taught(self, batch: TaughtBatch) -> tuple[Tensor, Tensor]:
        """Return the teacher's predictions of a batch on the device."""
        return batch.tokens.to(self.device), batch.logs.to(self.device)

    def _back(self, before: Sequence[Tensor], calls: Sequence[Call], slope: Tensor) -> None:
        """Run the layers that learn again, the last one first, each with its backward pass.

        `before` are the states before these layers.
        """
        for index in reversed(range(self.first, len(calls))):
            start = before[index - self.first].detach().requires_grad_(index > self.first)
            with torch.enable_grad(), self.live.layer(index) as layer, self._autocast():
                after = calls[index].of(layer, start)
                if after.requires_grad:
                    torch.autograd.backward([after], [slope.to(after.dtype)])
            if start.grad is not None:
                slope = start.grad

    @torch.no_grad()
    def _begun(self, tokens: Int64[Tensor, " batch length"]) -> tuple[Tensor, Sequence[Call]]:
        context = tokens[:, :-1].to(self.device)
        with self._autocast():
            hidden, calls = record_calls(self.live, [context])
        return hidden[0].float(), calls[0]

    def _run(self, index: int, call: Call, hidden: Tensor) -> Tensor:
        with self.live.layer(index) as layer, self._autocast():
            return call.of(layer, hidden)


@final
class Training:
    """Learning from a teacher's predictions: `run`. Its state is kept in `folder`, under `key`.

    A state is valid only with the predictions that it learned from; their digests are in its key.
    The processes of a group share each step, and the first one keeps the state.
    """

    def __init__(
        self,
        student: Student,
        learning: Learning,
        taught: tuple[TaughtSequences, TaughtSequences],
        folder: Path,
        key: str,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.student = student
        self.learning = learning
        self.learned, self.held = taught
        self.file = folder / "state.safetensors"
        self.key = f"{key} {self.learned.digest} {self.held.digest}"
        self.group = group
        self.parameters = learning.parameters
        self.rate = WHOLE_RATE if isinstance(learning, WholeWeights) else LOW_RANK_RATE
        self.count, length = self.learned.sequences.shape
        step = step_tokens(self.count * length, group.size)
        self.batch = max(group.size, step // length)
        self.steps = -(-self.count // self.batch)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=self.rate, betas=BETAS, weight_decay=0.0
        )
        self.done = 0
        self.best = math.inf
        self.start = math.nan
        self._best: dict[str, Tensor] = {}

    def run(self, on_event: OnEvent = ignore_events) -> None:
        """Learn, and leave the parameters at the state of the least held-out loss.

        Raises HealError (C809) if a loss isn't finite, NotFiniteError if that is before the first
        step.
        """
        self._load()
        checks = {round(self.steps * n / CHECKS) for n in range(1, CHECKS + 1)}
        if not self.done and math.isnan(self.start):
            self.start = self.held_out()
            self._evaluate(self.start)
        now, losses = self.best, list[float]()
        begun, first, saved = time.monotonic(), self.done, time.monotonic()
        on_event(Progress("healing", self.done, self.steps, numbers={"held_out": now}))
        while self.done < self.steps:
            losses.append(self._step())
            if self.done in checks:
                now = self.held_out()
                self._evaluate(now)
            if self.group.first and time.monotonic() - saved > _SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            numbers = {"loss": sum(losses[-10:]) / len(losses[-10:]), "held_out": now}
            left = seconds_left(begun, self.done - first, self.steps - first)
            on_event(Progress("healing", self.done, self.steps, seconds_left=left, numbers=numbers))
        self.learning.take(self._best)

    def held_out(self) -> float:
        """Return the mean divergence of the held-out sequences' predictions, in nats a token."""
        return self._number(self.student.mean_divergence(self.held, self.group))

    def _step(self) -> float:
        start = self.done * self.batch
        stop = min(start + self.batch, self.count)
        own_start, own_stop = self.group.share(start, stop)
        own = 0.0
        if own_start < own_stop:
            count = int(self.learned.counted[start:stop].sum())
            own = self.student.learn(self.learned.of(own_start, own_stop), count)
        loss = self._number(self.group.sum(own))
        if own_start < own_stop:
            self.learning.collect()
        self._add_up_gradients()
        for group in self.optimiser.param_groups:
            near = min(1.0, self.start / FULL_RATE_LOSS)
            group["lr"] = self.rate * near * _share(self.done, self.steps)
        nn.utils.clip_grad_norm_(self.parameters.values(), LONGEST_GRADIENT)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.learning.apply()
        self.done += 1
        return loss

    def _add_up_gradients(self) -> None:
        if self.group.size == 1:
            return
        for parameter in self.parameters.values():
            gradient = parameter.grad
            if gradient is None:  # no sequence of this process reached it
                gradient = parameter.grad = torch.zeros_like(parameter)
            self.group.add_up([gradient])

    def _number(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        if not self.done:
            raise NotFiniteError("the loss is not finite before the first step")
        message = f"'heal' diverges: the loss is not finite at step {self.done} of {self.steps}"
        help_ = "nothing was written; use a lower rank or other text"
        raise HealError("C809", message, help_)

    def _evaluate(self, loss: float) -> None:
        if loss < self.best:
            self.best = loss
            self._best = {n: p.detach().clone() for n, p in self.parameters.items()}

    # -------------------------------------------------------------------------------- the state

    def _save(self) -> None:
        tensors = {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"now.{name}": parameter for name, parameter in self.parameters.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{field}": value for field, value in state.items()}
        numbers = {"done": self.done, "best": self.best, "start": self.start}
        KeptTensors(tensors, numbers).write(self.file, self.key)

    def _load(self) -> None:
        """Continue from a kept state, if a sound one is available."""
        if (kept := read_tensors(self.file, self.key)) is None:
            return
        self.learning.take({name: kept.tensors[f"now.{name}"] for name in self.parameters})
        self._best = {
            name: kept.tensors[f"best.{name}"].to(parameter.device)
            for name, parameter in self.parameters.items()
        }
        states = defaultdict[int, dict[str, Tensor]](dict)
        for name, tensor in kept.tensors.items():
            if name.startswith("adam."):
                _, number, field = name.split(".")
                states[int(number)][field] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": states})
        self.done, self.best = int(kept.numbers["done"]), kept.numbers["best"]
        self.start = kept.numbers["start"]


def _share(step: int, steps: int) -> float:
    """Return the rate of a step, as a share of the highest."""
    rising = max(1, int(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
