"""The experts of plans' layers that stay: those whose outputs weigh most on calibration text.

The value of an expert is the mean of g · ‖f(x)‖₂ over the tokens x that are routed to it, with the
router's weight g and the expert's output f(x) (REAP, arXiv 2510.13999). The values are measured on
the hidden states of the whole plan, in one pass. So plans with other drops and numbers share them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from gptailor.checkpoint.families.mixture import routing
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.evaluation.bridge.fit import BridgeError, Fitter, fit_key, measured_layers
from gptailor.evaluation.bridge.states import CalibrationText, Walk
from gptailor.evaluation.kept_tensors import KeptTensors
from gptailor.evaluation.live import content_keys
from gptailor.plan.events import ChoosingBegun, ChoosingEnd, ChoosingStep, OnEvent, ignore_events
from gptailor.plan.registry import EXPERT_TOKENS
from gptailor.plan.resolved import Resolved

_MODULE = "experts"
"""The name of the module in a layer that has the experts, and receives the router's choice."""
_KEPT_TEXTS = 8
"""Plans and texts whose values stay in memory."""


@final
@dataclass(frozen=True, eq=False)
class ExpertValues:
    """The use of a layer's experts: for each the sum of g · ‖f(x)‖₂, and its number of tokens."""

    sums: Float64[Tensor, " experts"]
    tokens: Int64[Tensor, " experts"]

    def kept(self, count: int, groups: int) -> tuple[int, ...]:
        """Return the `count` experts with the largest means, as many in each group, ascending.

        An expert without tokens has the value 0. Of equal ones those of smaller numbers stay.
        """
        means = self.sums / self.tokens.clamp(min=1)
        each = len(means) // groups
        best = means.reshape(groups, each).argsort(dim=1, descending=True, stable=True)
        numbers = best[:, : count // groups] + each * torch.arange(groups)[:, None]
        return tuple(sorted(numbers.reshape(-1).tolist()))

    def share(self, kept: Sequence[int]) -> float:
        """Return the share of some experts in the sum of all."""
        total = float(self.sums.sum())
        return float(self.sums[list(kept)].sum()) / total if total else 1.0


@final
@dataclass(frozen=True, eq=False)
class ChosenExperts:
    """The experts of a plan with nothing dropped that stay.

    `kept` has their numbers in each layer, () for a dense layer. `digest` is that of the
    calibration file, and `tokens` counts the tokens that were read. `share` is the experts' share
    of the weighted norms of all experts' outputs, the mean of the layers with experts.
    """

    kept: tuple[tuple[int, ...], ...]
    digest: FileDigest
    tokens: int
    share: float


@final
class ExpertChooser(Fitter[tuple[ExpertValues | None, ...]]):
    """Chooses experts of plans by their values, which are kept as fits are."""

    kept_in = "experts"

    def choose(
        self, resolved: Resolved, own: int, on_event: OnEvent = ignore_events
    ) -> ChosenExperts:
        """Return the experts of a closed plan that stay, of `own` in a layer; report new values.

        Raises CalibrationError for a text that doesn't serve, BridgeError (C807) for hidden states
        that aren't finite.
        """
        cut = resolved.cuts["experts"]
        undone = self.table.contents(resolved.undone)
        text = self._texts.of(
            resolved.declared, cut.on, cut.tokens or EXPERT_TOKENS, own,
            named=cut.tokens is not None, statement="experts",
        )  # fmt: skip
        start = content_keys.piece((*undone.begin, *undone.others))
        key = (start, undone.layers, text)
        values = self._fits.get(key)
        if values is None:
            kept_key = fit_key(undone, (self.device.type, self.place.type), text)
            values = self._kept(kept_key, len(undone.layers))
            if values is None:
                on_event(ChoosingBegun(len(undone.layers), cut.size))
                values = tuple(self._layers(resolved, undone, text, own, on_event))
                self._keep(kept_key, values)
            self._fits.put(key, values)
            self._fits.forget(_KEPT_TEXTS)
        groups = routing(self.base.layout, self.base.config).groups
        kept = tuple(() if v is None else v.kept(cut.size, groups) for v in values)
        shares = [v.share(k) for v, k in zip(values, kept, strict=True) if v is not None]
        chosen = ChosenExperts(kept, text.digest, text.tokens, sum(shares) / max(1, len(shares)))
        on_event(ChoosingEnd(cut.size, text.tokens, chosen.share))
        return chosen

    def _layers(
        self,
        resolved: Resolved,
        undone: content_keys.ModelContents,
        text: CalibrationText,
        own: int,
        on_event: OnEvent,
    ) -> Iterator[ExpertValues | None]:
        walk = Walk(undone, undone, self.table, self.live, text.batches, self.place)

        def step(done: int, total: int, seconds_left: float) -> None:
            on_event(ChoosingStep(done, total, seconds_left))

        slots = resolved.undone.kept
        return measured_layers(undone, slots, "experts", lambda _: _values_of(walk, own), step)

    # ---------------------------------------------------------------------------------- on the disk

    def _kept(self, key: str, layers: int) -> tuple[ExpertValues | None, ...] | None:
        """Return the values of that key, if this machine has them."""
        if self._store is None or (kept := self._store.get(key)) is None:
            return None
        found = kept.tensors
        return tuple(
            ExpertValues(found[f"{n} sums"], found[f"{n} tokens"]) if f"{n} sums" in found else None
            for n in range(layers)
        )

    def _keep(self, key: str, values: Sequence[ExpertValues | None]) -> None:
        if self._store is None:
            return
        tensors: dict[str, Tensor] = {}
        for number, each in enumerate(values):
            if each is not None:
                tensors |= {f"{number} sums": each.sums, f"{number} tokens": each.tokens}
        self._store.put(key, KeptTensors(tensors, {}))


def _values_of(walk: Walk, count: int) -> ExpertValues | None:
    """Run the next layer, and return the use of its experts; None for a dense layer."""
    sums = torch.zeros(count, dtype=torch.float64)
    tokens = torch.zeros(count, dtype=torch.int64)
    sparse = False
    for used, _, real in walk.watched(uses_of_experts):
        for norms, numbers, routed in used():
            sparse = True
            counted = routed & real.reshape(-1, 1)
            sums.index_add_(0, numbers[counted].cpu(), norms[counted].double().cpu())
            tokens += torch.bincount(numbers[counted].cpu(), minlength=count)
    if not bool(torch.isfinite(sums).all()):
        raise BridgeError("C807", "hidden states are not finite (NaN or infinity)")
    return ExpertValues(sums, tokens) if sparse else None


Uses = tuple[Tensor, Int64[Tensor, "tokens taken"], Bool[Tensor, "tokens taken"]]
"""For each token and expert that it takes: g · ‖f(x)‖₂, the expert's number, and whether it counts.
"""


@contextmanager
def uses_of_experts(layer: nn.Module) -> Iterator[Callable[[], list[Uses]]]:
    """Observe a live layer's experts; yield a function that returns the uses of the last run.

    transformers' modules of experts receive hidden states, numbers of experts and their weights.
    Llama 4's receives each expert's own inputs, already weighted. A dense layer has no uses.
    """
    uses: list[Uses] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> None:
        hidden, *routed = (*args, *kwargs.values())
        uses.append(_routed(module, hidden, *routed) if routed else _weighted(module, hidden))

    def enter(*_: object) -> None:
        uses.clear()

    named = [module for name, module in layer.named_modules() if name.split(".")[-1] == _MODULE]
    hooks = [module.register_forward_hook(catch, with_kwargs=True) for module in named]
    hooks.append(layer.register_forward_pre_hook(enter))
    try:
        yield lambda: uses
    finally:
        for hook in hooks:
            hook.remove()


def _routed(module: nn.Module, hidden: Tensor, numbers: Tensor, weights: Tensor) -> Uses:
    """Return the uses of experts that are called once more for each choice of the tokens."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    outputs = (
        module.forward(rows, numbers[:, i : i + 1], weights[:, i : i + 1])
        for i in range(numbers.shape[1])
    )
    norms = [output.float().norm(dim=-1).reshape(-1) for output in outputs]
    return torch.stack(norms, dim=1), numbers, torch.ones_like(numbers, dtype=torch.bool)


def _weighted(module: nn.Module, inputs: Tensor) -> Uses:
    """Return the uses of experts that each receive all tokens, those of other experts as zeros."""
    count = next(module.parameters()).shape[0]
    norms = module.forward(inputs).float().norm(dim=-1).reshape(count, -1).T
    routed = (inputs != 0).any(dim=-1).reshape(count, -1).T
    numbers = torch.arange(count, device=inputs.device).expand(len(norms), -1)
    return norms, numbers, routed
