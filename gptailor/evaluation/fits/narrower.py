"""Narrower MLPs of plans: the neurons that stay, and the output projections fitted for them.

Each layer is fitted on the hidden states of the whole plan, in one pass. So plans with other drops
share the fits. Fits on the states of a narrow plan gave a higher loss (benchmarks/notes/width.md).

X are the neurons' values for each token, the inputs of the output projection W, which has a row for
each neuron. The error of a narrow MLP is |XW − X_S B|², weighted by Ω, with the neurons S that stay
and their new rows B. It depends on the sums XᵀΩX alone.
"""

import math
from functools import partial
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gptailor.checkpoint.families.layout import projection
from gptailor.checkpoint.families.width import Neurons, neurons_in
from gptailor.evaluation.fits.bridge.fit import (
    FittedTokens,
    Statistics,
    add_tokens,
    fold_fit,
    solve,
)
from gptailor.evaluation.fits.bridge.states import CalibrationText, Pass, regressors
from gptailor.evaluation.fits.fit import (
    BridgeError,
    Fit,
    Fitted,
    LayerResult,
    PlanSizes,
    RepairEstimate,
    read_tokens,
)
from gptailor.evaluation.live import content_keys
from gptailor.plan.events import FitResult, OnEvent
from gptailor.plan.plan import SizeCut
from gptailor.plan.registry import WIDTH_TOKENS
from gptailor.program.fits import layer_cuts
from gptailor.program.program import Output

LEAST_RIDGE = 1e-6
"""The least ridge of a choice, which has a solution for any text."""
_BLOCKS = 32
"""Blocks of neurons that are removed one after another."""


@final
class Narrower(Fit):
    """Narrows the MLPs of plans."""

    folder = "narrowed"

    @staticmethod
    def cost(sizes: PlanSizes) -> RepairEstimate:
        """Estimate the cost of a pass through all layers, and of a fit for each."""
        own, cut = layer_cuts(sizes.prepared.checked)["width"]
        tokens = read_tokens(sizes.plan.declared, cut.on, cut.tokens or WIDTH_TOKENS)
        work = 2 * tokens * (sum(sizes.layers) + len(sizes.layers) * own * own)
        size = sizes.states(tokens) + _working_size(own, sizes.width)
        return sizes.estimate("narrowing", tokens, work, size)

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with narrow MLPs, of the layers that are dropped too.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a layer without a
        fit.
        """
        resolved, (width, cut) = fitted.resolved, layer_cuts(fitted.checked)["width"]
        undone = self.table.contents(resolved.undone)
        hidden = self._down(undone.layers[0]).spec.elements // width
        text = self.text(resolved.declared, "width", cut, WIDTH_TOKENS, width)
        fits = self.by_layer(
            undone, resolved.undone.kept, text, ("MLP", "narrowing"),
            partial(self._fit, cut, text), on_event, opening={"size": cut.closed_size},
            settings=(cut.size, cut.closed_ridge), workspace=_working_size(width, hidden),
            read=self._read,
        )  # fmt: skip
        recovered = math.fsum(float(fit[_HELD_OUT]) for fit in fits) / len(fits)
        result = FitResult("width", "width", (text.read,), {"recovered": recovered})
        own = [{name: tensor for name, tensor in fit.items() if name != _HELD_OUT} for fit in fits]
        changes = {i: own[number] for i, number in enumerate(resolved.undone_numbers)}
        return fitted.having(changes, result)

    def _fit(
        self, cut: SizeCut, text: CalibrationText, walk: Pass, content: content_keys.Content
    ) -> LayerResult:
        """Return a layer's neurons that stay, its output projection, and the share `held_out`."""
        ridge, output = cut.closed_ridge, self._down(content)
        name, down = output.spec.name, self.stitcher.tensors.of_layer(content, output)
        neurons = neurons_in(self.layout, name, down.shape)
        assert neurons is not None, "an output projection"
        rows = down.to(device=walk.device, dtype=torch.float64).movedim(neurons.axis, 0)
        sums = Statistics(len(rows), 0, walk.device)
        seen = walk.watched(lambda layer: regressors(layer, self.layout))
        pairs = ((last()[real], after[real]) for last, after, real in seen)
        sampled = add_tokens(sums, text, ((x, x[:, :0], after) for x, after in pairs))
        kept = kept_neurons(sums, rows, cut.closed_size, ridge)
        solution = solve(sums_of_kept(sums, rows, kept), ridge)
        held_out = solution.held_out([_without(tokens, rows, kept) for tokens in sampled])
        narrow = {name: _sliced(down, neurons, kept.to(down.device))}
        folded = fold_fit(solution.change, narrow, self.layout, {name: output.spec.dtype})
        held = torch.tensor(held_out, dtype=torch.float64)
        return {**folded, _KEPT: kept.cpu(), _HELD_OUT: held}

    def _read(self, content: content_keys.Content, fit: LayerResult) -> LayerResult:
        """Return the tensors of a narrow layer that differ from the whole layer's tensors."""
        tensors = dict(fit)
        kept = tensors.pop(_KEPT)
        for output in content.outputs:
            name, neurons = output.spec.name, None
            if name not in tensors:
                neurons = neurons_in(self.layout, name, output.spec.shape)
            if neurons is not None:
                made = self.stitcher.tensors.of_layer(content, output)
                tensors[name] = _sliced(made, neurons, kept.to(made.device)).cpu()
        return tensors

    def _down(self, content: content_keys.Content) -> Output:
        """Return the weight of a layer's output projection."""
        [down] = [
            output
            for output in content.outputs
            if projection(self.layout, output.spec.name) == "mlp" and len(output.spec.shape) == 2
        ]
        return down


_KEPT, _HELD_OUT = "kept", "held_out"
"""The names of the neurons that stay and of the share `held_out`, in a file of fits."""


def _without(tokens: FittedTokens, rows: Tensor, kept: Tensor) -> FittedTokens:
    """Return the tokens of a fit of the neurons that stay."""
    x, _, omega = tokens
    leaving = torch.ones(len(rows), dtype=torch.bool)
    leaving[kept.cpu()] = False
    return x[:, kept.cpu()], x[:, leaving].double() @ rows.cpu()[leaving], omega


def _sliced(tensor: Tensor, neurons: Neurons, kept: Int64[Tensor, " count"]) -> Tensor:
    """Return a tensor with the neurons that stay alone."""
    width = tensor.shape[neurons.axis] // neurons.copies
    numbers = torch.cat([kept + copy * width for copy in range(neurons.copies)])
    return tensor.index_select(neurons.axis, numbers).contiguous()


# ----------------------------------------------------------------------------------------- neurons


def kept_neurons(
    sums: Statistics,
    rows: Float64[Tensor, " neurons width_out"],
    count: int,
    ridge: float,
) -> Int64[Tensor, " count"]:
    """Choose the neurons that stay, in ascending order: `count` of all.

    A neuron's removal costs |b|² / P_jj, with its row of B = PXᵀΩXW and the diagonal of the inverse
    P = (XᵀΩX + λI)⁻¹: the least increase of the squared error when all other neurons are fitted
    again (optimal brain surgeon). Blocks of the cheapest neurons leave, and B and P follow. λ is
    `ridge` × the median of XᵀΩX's diagonal, with a ridge of at least `LEAST_RIDGE`. The sums are
    unchanged. Equal costs leave in the order of the neurons.

    Raises BridgeError (C808) where XᵀΩX + λI has no inverse.
    """
    gram = _symmetric(sums.gram)
    positive = gram.diagonal()[gram.diagonal() > 0]
    middle = float(positive.median()) if len(positive) else 1.0
    damping = max(ridge, LEAST_RIDGE) * middle
    gram.diagonal().add_(damping)
    scale = gram.diagonal().sqrt()
    lower, failed = torch.linalg.cholesky_ex(gram / scale / scale[:, None])
    if int(failed):
        message = f"the {len(rows)} neurons depend on each other over {sums.count:,} tokens"
        raise BridgeError("C808", message, "give a larger ridge, or more tokens of other text")
    inverse = torch.cholesky_inverse(lower)
    inverse.div_(scale).div_(scale[:, None])
    best = rows - damping * (inverse @ rows)
    left = torch.arange(len(rows), device=rows.device)
    block = -(-(len(rows) - count) // _BLOCKS)
    while len(left) > count:
        costs = best.square().sum(1) / inverse.diagonal()
        size = min(block, len(left) - count)
        leaving = torch.zeros(len(left), dtype=torch.bool, device=rows.device)
        leaving[costs.argsort(stable=True)[:size]] = True
        half = torch.linalg.solve(inverse[leaving][:, leaving], inverse[leaving])
        best = (best - half.T @ best[leaving])[~leaving]
        inverse = (inverse - inverse[:, leaving] @ half)[~leaving][:, ~leaving]
        left = left[~leaving]
    return left


def sums_of_kept(
    sums: Statistics, rows: Float64[Tensor, " neurons width_out"], kept: Int64[Tensor, " count"]
) -> Statistics:
    """Return the sums of the fit of the neurons that stay: their inputs, and the missing output.

    Without the other neurons the MLP lacks their values times their rows. The result is as if
    `Statistics` had read the tokens with this as R.
    """
    gram = _symmetric(sums.gram)
    leaving = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    leaving[kept] = False
    gone = rows[leaving]
    result = Statistics(len(kept), rows.shape[1], rows.device)
    result.count = sums.count
    result.gram = gram[kept][:, kept]
    result.cross = gram[kept][:, leaving] @ gone
    result.squares = (gone * (gram[leaving][:, leaving] @ gone)).sum()
    return result


def _working_size(width_in: int, width_out: int) -> int:
    """Return the bytes of the sums, of a choice, and of the fit after it."""
    return Statistics.size(width_in, 2 * width_out) + 4 * 8 * width_in**2


def _symmetric(upper: Float64[Tensor, " n n"]) -> Float64[Tensor, " n n"]:
    """Return a matrix by the half above its diagonal, which the sums have."""
    return upper.triu() + upper.triu(1).T
