"""What a bridge is fitted from, as sums over tokens, and the fit: `Statistics`, `solve`."""

from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gptailor.diagnostics import TailorError


@final
class BridgeError(TailorError):
    """A gap can't be bridged: a stable code, and why."""

    def __init__(self, code: str, message: str, help: str = "") -> None:
        super().__init__(code, message, help)
        self.code = code
        self.message = message
        self.help = help

    def __str__(self) -> str:
        said = f"error[{self.code}]: {self.message}"
        return said + (f"\n  = help: {self.help}" if self.help else "")


@final
class Statistics:
    """Sums in float64 over tokens of an MLP branch's output M and of the rest R that is to be made.

    R = T − Y − M is what the hidden state before the gap lacks of the one after it. Both have
    `width` entries a token. `count` is the number of tokens, `branch` is MᵀM, `cross` MᵀR, `rest`
    the diagonal of RᵀR, `branch_sum` and `rest_sum` the sums over tokens.

    `first_branch` and `first_cross` are MᵀM and MᵀR over the first token of each sequence, which is
    in no other sum: in many models its M is a thousand times as long as others'.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Float64[Tensor, "..."]:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.branch = zeros(width, width)
        self.cross = zeros(width, width)
        self.rest = zeros(width)
        self.first_branch = zeros(width, width)
        self.first_cross = zeros(width, width)
        self.branch_sum = zeros(width)
        self.rest_sum = zeros(width)

    def add(self, branch: Float[Tensor, " n width"], rest: Float[Tensor, " n width"]) -> None:
        """Take some more tokens into the sums. Raises BridgeError (C807) for what is no number."""
        m, r = branch.double(), rest.double()
        self.count += len(m)
        self.branch.addmm_(m.T, m)
        self.cross.addmm_(m.T, r)
        self.rest.add_(r.square().sum(0))
        self.branch_sum.add_(m.sum(0))
        self.rest_sum.add_(r.sum(0))
        self._refuse_strange(self.cross)

    def add_first(self, branch: Float[Tensor, " n width"], rest: Float[Tensor, " n width"]) -> None:
        """Take the first tokens of some sequences in. Raises BridgeError (C807) as `add`."""
        m, r = branch.double(), rest.double()
        self.first_branch.addmm_(m.T, m)
        self.first_cross.addmm_(m.T, r)
        self._refuse_strange(self.first_cross)

    def _refuse_strange(self, cross: Float64[Tensor, " width width"]) -> None:
        whole = cross.sum() + self.branch.sum() + self.rest.sum() + self.first_branch.sum()
        if not bool(torch.isfinite(whole)):
            raise BridgeError("C807", "hidden states are no numbers (NaN or infinite)")

    def explained(self, w: Float64[Tensor, " width width"]) -> float:
        """The share of R's squares that the map W takes away on these tokens; 0 for the identity.

        1 − |R − M(W − I)|² / |R|².
        """
        change = w - torch.eye(len(w), dtype=w.dtype, device=w.device)
        whole = float(self.rest.sum())
        gain = 2 * (change * self.cross).sum() - (change * (self.branch @ change)).sum()
        return float(gain) / whole if whole else 0.0


def solve(statistics: Statistics, ridge: float) -> Float64[Tensor, " width width"]:
    """W = I + (MᵀM + λI)⁻¹ MᵀR over all tokens.

    λ = ridge × the mean of MᵀM's diagonal without the first token of each sequence, which would
    drown the others there. A row of hidden states y + m becomes y + mW. Raises BridgeError (C808)
    where MᵀM + λI has no inverse.
    """
    branch = statistics.branch
    identity = torch.eye(len(branch), dtype=branch.dtype, device=branch.device)
    damped = branch + statistics.first_branch + ridge * branch.diagonal().mean() * identity
    scale = damped.diagonal().sqrt()[:, None]  # so that large channels leave small ones digits
    factor, failed = torch.linalg.cholesky_ex(damped / (scale * scale.T))
    change = (
        torch.cholesky_solve((statistics.cross + statistics.first_cross) / scale, factor) / scale
    )
    if int(failed) or not bool(torch.isfinite(change).all()) or _is_singular(factor):
        message = (
            f"the MLP branch's {len(branch)} outputs depend on each other over "
            f"{statistics.count:,} tokens, so that the fit has no one solution"
        )
        raise BridgeError("C808", message, "give a ridge above 0, or more tokens of other text")
    return identity + change


def _is_singular(factor: Float64[Tensor, " width width"]) -> bool:
    """Whether a triangular factor's diagonal says that all digits are lost."""
    diagonal = factor.diagonal()
    least = diagonal.max() * (len(factor) * torch.finfo(factor.dtype).eps) ** 0.5
    return bool(diagonal.min() <= least)
