"""The neurons of an MLP that stay, and the sums of the fit that replaces the others.

X are the neurons' values for each token, the inputs of the output projection W, which has a row for
each neuron. The error of a narrow MLP is |XW − X_S B|², weighted by Ω, with the neurons S that stay
and their new rows B. It depends on the sums XᵀΩX alone.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gptailor.evaluation.fits.bridge.fit import BridgeError, Statistics

LEAST_RIDGE = 1e-6
"""The least ridge of a choice, which has a solution for any text."""
_BLOCKS = 32
"""Blocks of neurons that are removed one after another."""


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
    """Return the sums of the fit of the neurons that stay: their inputs, and what is lacking.

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


def working_size(width_in: int, width_out: int) -> int:
    """Return the bytes of the sums, of a choice, and of the fit after it."""
    return Statistics.size(width_in, 2 * width_out) + 4 * 8 * width_in**2


def _symmetric(upper: Float64[Tensor, " n n"]) -> Float64[Tensor, " n n"]:
    """Return a matrix by the half above its diagonal, which the sums have."""
    return upper.triu() + upper.triu(1).T
