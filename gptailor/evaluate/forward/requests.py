"""What an objective asks of the forward pass: which tokens to predict, and what to keep of it."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from gptailor.evaluate.outcome import Failure

__all__ = ["Failure", "LiveModel", "Measure", "Request", "Results", "Rows", "Work"]


@dataclass(frozen=True, slots=True)
class Request:
    """A text in tokens, of which `tokens[first:]` are to be predicted, each from all before it.

    Raises `ValueError` where no token is to be predicted, or one that has none before it.
    """

    tokens: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.first < len(self.tokens):
            raise ValueError(
                f"a request of {len(self.tokens)} tokens can't be predicted from {self.first} on"
            )

    @property
    def predicted(self) -> int:
        """How many tokens are predicted."""
        return len(self.tokens) - self.first


@dataclass(frozen=True)
class Rows:
    """Which predictions some rows of logits are; the tensors lie on the CPU."""

    request: Int64[Tensor, " n"]
    """The number of the request in `Work.requests`."""
    position: Int64[Tensor, " n"]
    """The place of the predicted token in the request's `tokens`: from `first` to the end."""
    number: Int64[Tensor, " n"]
    """The row's number among all of the work, request after request: where a table has it."""


Measure: TypeAlias = Callable[
    [Float[Tensor, " n vocab"], Int64[Tensor, " n"], Rows], Float[Tensor, " n k"]
]
"""Logits in float32, the tokens that were to come, which rows these are -> k numbers a row.

Each row by itself: rows come in any order and in chunks, and what one chunk holds changes
nothing but rounding. It leaves the logits as they are: other works measure them too. Logits and
targets lie on the device; so may the result.
"""


@dataclass(frozen=True)
class Work:
    """What one objective wants from a forward pass."""

    requests: Sequence[Request]
    measure: Measure


Results: TypeAlias = list[list[Tensor]]
"""For each work, for each of its requests: float32 [predicted, k] on the CPU."""


@runtime_checkable
class LiveModel(Protocol):
    """A plan as a module whose layers are lent one by one (`Stitched`).

    Two with an equal `start` and equal first k `layers` have the same hidden states after k layers.
    """

    @property
    def model(self) -> PreTrainedModel:
        """The module; the tensors of its layers may be away until `layer` lends them."""

    @property
    def start(self) -> Hashable:
        """What makes the hidden state that enters the first layer."""

    @property
    def layers(self) -> tuple[Hashable, ...]:
        """What each layer computes."""

    def layer(self, index: int, /) -> AbstractContextManager[nn.Module]:
        """The layer, ready to run on the device."""
