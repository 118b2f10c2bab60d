"""Fits of gaps by other packages: `GapFit`."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class GapFit(ABC):
    """A fit that closes a gap in a plan: `bridge by NAME on "text.txt"`.

    The matrix C of the fit is folded into the layer before the gap, which then also adds XC to the
    hidden state. X are the inputs of the last projection of the layer's MLP, or the output of its
    experts.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device) -> None:
        self.width_in = width_in
        self.width_out = width_out
        self.device = device

    @abstractmethod
    def add(
        self,
        x: Float[Tensor, " n width_in"],
        missing: Float[Tensor, " n width_out"],
        target: Float[Tensor, " n width_out"],
    ) -> None:
        """Add the tokens of a batch: X, the part that is missing, and the state after the gap.

        `missing` is the difference between the `target` state and the state that the layer leaves.
        The tensors are on `device`.
        """

    @abstractmethod
    def change(self, ridge: float) -> Float[Tensor, " width_in width_out"]:
        """Return C, so that XC is near to the missing part. `ridge` is the plan's, or 0.1."""
