"""The one way from arithmetic to a dtype: `rounded`, which refuses infinity and NaN.

A result that is infinity or NaN is refused, whether numbers of the plan, numbers of a file, or
earlier infinity or NaN caused it. Bytes that are only copied don't pass here.
"""

import sys
from collections.abc import Callable, Sequence
from math import isfinite, isnan, prod
from typing import final

from gptailor.methods import native
from gptailor.methods.arrays import FLOAT_NAMES, Array, finite, namespace, narrowed
from gptailor.methods.shapes import Bool, Shaped
from gptailor.plan.faults import Fault, PlanError
from gptailor.plan.registry import LARGEST_SINGLE

LONGER_DTYPE = "choose a dtype that reaches further"

LARGEST_OF = {
    "F64": sys.float_info.max,
    "F32": LARGEST_SINGLE,
    "F16": 65504.0,
    "BF16": (2 - 2**-7) * 2.0**127,
}
"""The largest number of each dtype that can be merged, by its name in safetensors."""


@final
class OverflowFault(PlanError):  # noqa: N818 (the language speaks of it as a fault)
    """A finite computation with a value beyond its dtype; the first entry is named.

    `dtype` is its name in safetensors; `by` is how the value was computed, if that explains it.
    """

    def __init__(
        self,
        tensor: str,
        index: tuple[int, ...],
        value: float,
        dtype: str,
        by: str = "",
        help: str = LONGER_DTYPE,
    ) -> None:
        name, most = FLOAT_NAMES[dtype], LARGEST_OF[dtype]
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
    values: Shaped[Array, "*axes"], dtype: str, refuse: Callable[[int], object]
) -> Shaped[Array, "*axes"]:
    """Round values to the nearest numbers of a dtype of safetensors, ties to even.

    `refuse` is called with the number, in the flattened tensor, of the first entry that isn't
    finite then; if it returns, so are the rounded values. Finite values cost two reductions of
    numbers that are still in the cache.
    """
    if 0 in values.shape:
        return narrowed(values, dtype)
    if dtype == "BF16" and native.takes(values):
        result, largest = native.to_bfloat16(values)
    else:
        result, largest = narrowed(values, dtype), _largest(values)
    if largest <= LARGEST_OF[dtype]:  # NaN isn't
        return result
    if (number := first_true(~(finite(values) & finite(result)))) is not None:
        refuse(number)
    return result


def _largest(values: Shaped[Array, "*axes"]) -> float:
    """Return the largest magnitude; NaN if there is one."""
    if native.takes(values):
        return native.largest(values)
    xp = namespace(values)
    least, most = float(xp.min(values)), float(xp.max(values))
    return most if isnan(most) else max(-least, most)


def first_true(mask: Bool[Array, "*axes"]) -> int | None:
    """Return the number, in the flattened array, of the first true entry; None without one."""
    xp = namespace(mask)
    return int(xp.nonzero(mask.reshape(-1))[0][0]) if xp.any(mask) else None


def single(number: float) -> float:
    """Return a coefficient unchanged. Raises CoefficientError for one that float32 can't hold."""
    if not (isfinite(number) and abs(number) <= LARGEST_SINGLE):
        raise CoefficientError(number)
    return number
