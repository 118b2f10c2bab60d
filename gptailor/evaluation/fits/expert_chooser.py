"""The experts that stay in plans' layers: the largest weighted outputs on calibration text.

The value of an expert is the mean of g · ‖f(x)‖₂ over the tokens x that are routed to it, with the
router's weight g and the expert's output f(x) (REAP, arXiv 2510.13999). The values are measured on
the hidden states of the whole plan, in one pass. So plans with other drops and numbers share them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from gptailor.checkpoint.families.mixture import routing
from gptailor.evaluation.fits.bridge.states import Pass
from gptailor.evaluation.fits.fit import (
    BridgeError,
    Fit,
    Fitted,
    LayerResult,
    PlanSizes,
    RepairEstimate,
    read_tokens,
)
from gptailor.evaluation.live.content_keys import Content
from gptailor.plan.events import FitResult, OnEvent
from gptailor.plan.registry import EXPERT_TOKENS
from gptailor.program.fits import layer_cuts


@final
@dataclass(frozen=True, eq=False)
class ExpertValues:
    """The use of a layer's experts: for each the sum of g · ‖f(x)‖₂, and its number of tokens."""

    sums: Float64[Tensor, " experts"]
    tokens: Int64[Tensor, " experts"]

    def kept(self, count: int, groups: int) -> tuple[int, ...]:
        """Return the `count` experts with the largest means, as many in each group, ascending.

        An expert without tokens has the value 0. Among equal experts the smaller numbers stay.
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
class ExpertChooser(Fit):
    """Chooses experts of plans."""

    folder = "experts"

    @staticmethod
    def cost(sizes: PlanSizes) -> RepairEstimate:
        """Estimate the cost of a pass through all layers."""
        cut = sizes.plan.plan.cuts["experts"]
        tokens = read_tokens(sizes.plan.declared, cut.on, cut.tokens or EXPERT_TOKENS)
        work = 2 * tokens * sum(sizes.layers)
        return sizes.estimate("choosing experts", tokens, work, sizes.states(tokens))

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with the experts that stay.

        Raises CalibrationError for a text that doesn't serve, BridgeError (C807) for hidden states
        that aren't finite.
        """
        resolved, (own, cut) = fitted.resolved, layer_cuts(fitted.checked)["experts"]
        undone = self.table.contents(resolved.undone)
        text = self.text(resolved.declared, "experts", cut, EXPERT_TOKENS, own)
        layers = self.by_layer(
            undone, resolved.undone.kept, text, ("experts", "comparing experts"),
            partial(_values_of, own), on_event, opening={"size": cut.closed_size},
        )  # fmt: skip
        values = [ExpertValues(**layer) if layer else None for layer in layers]
        groups = routing(self.layout, self.table.models["base"].config).groups
        kept = tuple(() if v is None else v.kept(cut.closed_size, groups) for v in values)
        shares = [v.share(k) for v, k in zip(values, kept, strict=True) if v is not None]
        numbers = {"stay": max(map(len, kept)), "share": sum(shares) / max(1, len(shares))}
        result = FitResult("experts", "experts", (text.read,), numbers)
        checked = replace(fitted.checked, resolved=replace(resolved, kept_experts=kept))
        return replace(fitted.having({}, result), checked=checked)


def _values_of(count: int, walk: Pass, _content: Content) -> LayerResult:
    """Run the next layer, and return the use of its experts; nothing for a dense layer."""
    sums = torch.zeros(count, dtype=torch.float64)
    tokens = torch.zeros(count, dtype=torch.int64)
    sparse = False
    for used, _, real in walk.watched(_uses_of_experts):
        for norms, numbers, routed in used:
            sparse = True
            counted = routed & real.reshape(-1, 1)
            sums.index_add_(0, numbers[counted].cpu(), norms[counted].double().cpu())
            tokens += torch.bincount(numbers[counted].cpu(), minlength=count)
        used.clear()
    if not bool(torch.isfinite(sums).all()):
        raise BridgeError("C807", "hidden states are not finite (NaN or infinity)")
    return {"sums": sums, "tokens": tokens} if sparse else {}


Uses = tuple[Tensor, Int64[Tensor, "tokens taken"], Bool[Tensor, "tokens taken"]]
"""For each token and expert that it takes: g · ‖f(x)‖₂, the expert's number, and whether it counts.
"""


@contextmanager
def _uses_of_experts(layer: nn.Module) -> Iterator[list[Uses]]:
    """Observe a live layer's experts; yield the list to which each run adds its uses.

    transformers' modules `experts` receive hidden states, numbers of experts and their weights.
    Llama 4's receives each expert's own inputs, already weighted. A dense layer has no uses.
    """
    uses: list[Uses] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> None:
        hidden, *routed = (*args, *kwargs.values())
        uses.append(_routed(module, hidden, *routed) if routed else _weighted(module, hidden))

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            if name.split(".")[-1] == "experts":
                hooks.enter_context(module.register_forward_hook(catch, with_kwargs=True))
        yield uses


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
    """Return the uses of experts that each receive all tokens, other experts' as zeros."""
    count = next(module.parameters()).shape[0]
    norms = module.forward(inputs).float().norm(dim=-1).reshape(count, -1).T
    routed = (inputs != 0).any(dim=-1).reshape(count, -1).T
    numbers = torch.arange(count, device=inputs.device).expand(len(norms), -1)
    return norms, numbers, routed
