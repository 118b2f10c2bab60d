"""The effects of layers in a search's trials, as charts draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

LayerState = Literal["dropped", "kept", "changed"]
"""The fate of a layer of the base: it is dropped, kept unchanged, or changed."""


@final
@dataclass(frozen=True)
class LayerEffect:
    """The mean loss of plans with a layer in a state, minus the mean loss of other plans.

    `count` plans have the layer in the state; `others` don't.
    """

    layer: int
    state: LayerState
    mean: float
    error: float
    count: int
    others: int


@final
@dataclass(frozen=True)
class WindowLoss:
    """The mean and the least loss of `count` plans without a window of layers."""

    first: int
    last: int
    mean: float
    least: float
    count: int


@final
@dataclass(frozen=True)
class Effects:
    """The effects of layers: `seen` in the trials, and `learned` by the surrogate.

    `learned` effects are in deviations of the surrogate's target. `missing` has sentences on
    missing parts, with the reasons.
    """

    windows: Sequence[WindowLoss] = ()
    seen: Sequence[LayerEffect] = ()
    learned: Sequence[LayerEffect] = ()
    missing: Sequence[str] = ()
