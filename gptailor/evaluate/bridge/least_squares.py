"""What a bridge is fitted from, as sums over tokens, and the fit: `Statistics`, `solve`."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gptailor.plan.faults import TailorError

CHUNK = 1024
"""Tokens that are widened to float64 at once."""
GRAM_COLUMNS = 512
"""Columns of XᵀΩX that are summed at once: the half below the diagonal is left out."""


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
    """Weighted sums in float64 over tokens: of what a fit is made of, X, and what it is to make, R.

    X has `width_in` entries a token, R = T − Y − M, what the hidden state before the gap lacks of
    the one after it, `width_out`. `gram` is XᵀΩX, its upper triangle alone, `cross` XᵀΩR, `rest`
    the sum of all R's squares by their weights, `count` the number of tokens.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Float64[Tensor, "..."]:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.gram = zeros(width_in, width_in)
        self.cross = zeros(width_in, width_out)
        self.rest = zeros()

    @staticmethod
    def size(width_in: int, width_out: int) -> int:
        """Bytes that the sums take, those of `solve` included."""
        return 8 * width_in * (width_in + width_out)

    def add(
        self,
        x: Float[Tensor, " n width_in"],
        rest: Float[Tensor, " n width_out"],
        weights: Float64[Tensor, " n"],
    ) -> None:
        """Take some more tokens into the sums. Raises BridgeError (C807) for what is no number."""
        for at in range(0, len(x), CHUNK):
            some = slice(at, at + CHUNK)
            root = weights[some].sqrt()[:, None]
            self._add(x[some].double() * root, rest[some].double() * root)
        self.count += len(x)
        if not bool(torch.isfinite(self.rest + self.gram.diagonal().sum())):
            raise BridgeError("C807", "hidden states are no numbers (NaN or infinite)")

    def _add(
        self, x: Float64[Tensor, " n width_in"], rest: Float64[Tensor, " n width_out"]
    ) -> None:
        for at in range(0, x.shape[1], GRAM_COLUMNS):
            block = slice(at, at + GRAM_COLUMNS)
            self.gram[block, at:].addmm_(x[:, block].T, x[:, at:])
        self.cross.addmm_(x.T, rest)
        self.rest.add_(rest.square_().sum())


def weights(target: Float[Tensor, " n width_out"]) -> Float64[Tensor, " n"]:
    """Ω: 1/|T|² of each token, so that errors count as the next norm sees them.

    A token whose T is zero weighs nothing: it has no size that an error could be compared with.
    """
    squares = target.double().square().sum(-1)
    return torch.where(squares > 0, squares.reciprocal(), 0.0)


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A fit: what R is to be X times, and the share of R's weighted squares that XC takes away."""

    change: Float64[Tensor, " width_in width_out"]
    explained: float


def solve(statistics: Statistics, ridge: float) -> Solution:
    """C = (XᵀΩX + λI)⁻¹ XᵀΩR, with λ = ridge × the median of XᵀΩX's diagonal.

    Entries of X that are always zero are left out of the median, and C is zero there. The sums are
    used up: their memory is that of the factors and of C. Raises BridgeError (C808) where
    XᵀΩX + λI has no inverse.
    """
    diagonal = statistics.gram.diagonal()
    there = diagonal[diagonal > 0]
    damping = ridge * (float(there.median()) if len(there) else 1.0)
    diagonal.add_(damping)
    scale = diagonal.sqrt()[:, None]  # so that large entries leave small ones their digits
    lower = statistics.gram.div_(scale).div_(scale.T).T  # by columns, as LAPACK works in place
    failed = torch.zeros((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if int(failed) or not _is_regular(lower.diagonal()):
        message = (
            f"the {len(lower)} inputs of the fit depend on each other over "
            f"{statistics.count:,} tokens, so that it has no one solution"
        )
        raise BridgeError("C808", message, "give a ridge above 0, or more tokens of other text")
    half = torch.linalg.solve_triangular(
        lower, statistics.cross.div_(scale), upper=False, out=statistics.cross
    )
    gain = float(half.square().sum())  # of the damped fit: tr(CᵀXᵀΩR)
    change = torch.linalg.solve_triangular(lower.T, half, upper=True, out=half).div_(scale)
    whole = float(statistics.rest)
    gain += damping * float(torch.linalg.vector_norm(change)) ** 2
    return Solution(change, gain / whole if whole else 0.0)


def _is_regular(factor: Float64[Tensor, " width_in"]) -> bool:
    """Whether a triangular factor's diagonal says that there are digits left. NaN: not.

    Those of X itself, which is computed in float32.
    """
    least = factor.max() * len(factor) ** 0.5 * torch.finfo(torch.float32).eps
    return bool(factor.min() > least)
