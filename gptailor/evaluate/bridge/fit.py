"""Bridges: the gaps that drops leave closed by least squares, folded into weights that are there.

    fitted = fit(prepared, device="cuda", memory=20 * 10**9, told=lambda gap: print(gap.name))
    fitted.tensors["model.layers.19.mlp.down_proj.weight"]    # as the compiled folder has it
    fitted.bridges["L19"].explained

`gptailor.compile`, `gptailor.stitch` and `Stitcher.stitch` do this by themselves for a plan with
`bridge` in it. Below are, each usable alone:

- `bridge_text.calibration_text`: a file as batches of tokens
- `bridge_states.Walk`: hidden states of the plan with nothing dropped and of its own, and
  `Walk.statistics(gap, own)`, what a fit is made from, over any live models
- `bridge_statistics.Statistics`, `weights` and `solve(statistics, ridge)`: the rule
- `bridge_fold.fold(change, projections, …)`: the fit in the weights
- `bridging.Bridger`: all of it for many plans of one space, what they have in common once
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.checkpoint.families.layout import name_of
from gptailor.evaluate.bridge.bridger import FittedBridge, Told
from gptailor.evaluate.bridge.least_squares import BridgeError, Solution, Statistics, solve, weights
from gptailor.evaluate.live.stitch import Stitcher
from gptailor.prepare import Prepared

__all__ = [
    "BridgeError",
    "Fitted",
    "FittedBridge",
    "Solution",
    "Statistics",
    "fit",
    "solve",
    "weights",
]


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """The tensors that bridges change, by their names in the output, and the fit of each gap.

    `bridges` are named by the layer before the gap: `L19`.
    """

    tensors: Mapping[str, Shaped[Tensor, "..."]]
    bridges: Mapping[str, FittedBridge]


def fit(
    prepared: Prepared,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    told: Told = lambda _: None,
) -> Fitted:
    """Fit the bridges of a prepared plan; nothing is written, and without gaps nothing is done.

    The models run in float32, whatever dtype they are stored in; `memory` bounds the bytes of
    weights on the device, and of the sums that a fit is made from. `told` is told of each gap when
    its turn comes. The same text and plan give the same tensors in any process on one machine with
    the same number of threads.

    Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
    closed, TailorError if the world fails.
    """
    gaps = prepared.gaps
    if not gaps:
        return Fitted({}, {})
    stitcher = Stitcher(prepared.models, device=device, dtype=torch.float32, memory=memory)
    layout = prepared.models["base"].layout
    tensors: dict[str, Tensor] = {}
    bridges: dict[str, FittedBridge] = {}
    for gap, bridge in stitcher.bridges(prepared.plan, told):
        bridges[f"L{gap.after}"] = bridge
        named = bridge.tensors.items()
        tensors |= {name_of(layout, gap.index, rest): tensor for rest, tensor in named}
    return Fitted(tensors, bridges)
