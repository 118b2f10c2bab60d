"""The one way from arithmetic to a dtype: `rounded`, which refuses infinity and NaN.

A result that is infinity or NaN is refused, whether numbers of the plan, numbers of a file, or
earlier infinity or NaN caused it. Bytes that are only copied don't pass here.
"""

from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gptailor.plan.faults import Fault, PlanError
from gptailor.plan.registry import LARGEST_SINGLE

LONGER_DTYPE = "choose a dtype that reaches further"


@final
class OverflowFault(PlanError):  # noqa: N818 (the language speaks of it as a fault)
    """A finite computation whose value exceeds its dtype; the first entry is named.

    `by` is how the value was computed, if that explains it.
    """

    def __init__(
        self,
        tensor: str,
        index: tuple[int, ...],
        value: float,
        dtype: torch.dtype,
        by: str = "",
        help: str = LONGER_DTYPE,
    ) -> None:
        self.tensor, self.index, self.value, self.dtype = tensor, index, value, dtype
        name, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
        message = f"{entry(tensor, index)} is {value:.9g}, but {name} ends at {most:.9g}"
        message += f": {by}" if by else ""
        super().__init__([Fault("M401", message, help=help)])


@final
class NotFiniteFault(PlanError):  # noqa: N818 (as above)
    """An infinity or NaN in a tensor that arithmetic reads; the first entry is named.

    `owner` is the tensor's model or file, `state` how its numbers were read.
    """

    def __init__(
        self, tensor: str, index: tuple[int, ...], value: float, owner: str, state: str = ""
    ) -> None:
        self.tensor, self.index, self.value, self.owner = tensor, index, value, owner
        message = f"expected finite numbers, got {value:g} in {entry(tensor, index)} of '{owner}'"
        message += state
        help_ = "repair the model, or download it again; tensors that are only copied aren't read"
        super().__init__([Fault("M402", message, help=help_)])


@final
class CoefficientError(ArithmeticError):
    """A number, to multiply or divide a tensor by, that float32 can't hold."""

    def __init__(self, number: float) -> None:
        super().__init__(f"{number:.9g}, but float32 ends at {LARGEST_SINGLE:.9g}")
        self.number = number


def entry(tensor: str, index: Sequence[int]) -> str:
    """Return an entry of a tensor as messages write it: `'model.norm.weight'[3]`."""
    return f"'{tensor}'" + (f"[{', '.join(map(str, index))}]" if index else "")


def index_of(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of an entry by its number in the flattened tensor."""
    return tuple(number // prod(shape[i + 1 :]) % extent for i, extent in enumerate(shape))


def rounded(
    values: Float[Tensor, "*axes"], dtype: torch.dtype, refuse: Callable[[int], object]
) -> Float[Tensor, "*axes"]:
    """Round values to the nearest numbers of a dtype, ties to even.

    `refuse` is called with the number, in the flattened tensor, of the first entry that isn't
    finite then; if it returns, the values are returned as they are. Finite values cost one
    reduction, of what was just computed.
    """
    result = values.to(dtype)
    if not values.numel():
        return result
    least, most = torch.aminmax(values)
    limit = torch.finfo(dtype).max
    if -limit <= float(least) and float(most) <= limit:  # NaN is neither
        return result
    wrong = ~torch.isfinite(result)
    if wrong.any():
        refuse(int(wrong.reshape(-1).nonzero()[0, 0]))
    return result


def single(number: float) -> float:
    """Return a coefficient as it is. Raises CoefficientError for one that float32 can't hold."""
    if not (isfinite(number) and abs(number) <= LARGEST_SINGLE):
        raise CoefficientError(number)
    return number
