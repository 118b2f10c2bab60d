"""Numbers of a plan, fixed and chosen, and the base class of all of its data."""

from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, cast, final

from pydantic import BaseModel, ConfigDict, Field, Strict

from gptailor.plan.bounds import LARGEST_LAYER


class Closed(BaseModel):
    """Frozen, strict data that refuses unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class BuiltClosed(Closed):
    """Closed data with a validator that is built on import, for data that a long run makes.

    pydantic turns an interrupt during a build at first use into a SchemaError. This class itself
    has no validator, because the first one of a process takes as long as reading a plan.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        cls.model_rebuild(raise_errors=False)


_P = ParamSpec("_P")
_C = TypeVar("_C", bound=Closed)


def built(kind: Callable[_P, _C], *_: _P.args, **values: _P.kwargs) -> _C:
    """Return data without validation, from values of the right types in the plan's order.

    pydantic builds a validator at the first validation, which takes as long as reading a plan.
    """
    data: _C = cast("Any", kind).model_construct(**values)
    return data


T = TypeVar("T")
Several = Annotated[tuple[T, ...], Strict(False)]
Pair = Annotated[tuple[T, T], Strict(False)]
Position = Annotated[int, Field(ge=0, le=LARGEST_LAYER)]

# ----------------------------------------------------------------------------------------- numbers


@final
class Interval(Closed):
    """A choice: any real from low to high, both included. `0.0..1.0`."""

    interval: Pair[int | float]


@final
class OneOfNumbers(Closed):
    """A choice: one of these numbers. `one of (0.3, 0.5)`."""

    one_of: Several[int | float]


Number = int | float


@final
class Named(Closed):
    """A number by the name that `let` gives it; the same number everywhere. `mix`."""

    named: str


@final
class Curve(Closed):
    """A number for each position, on the straight lines through knots. `curve(0.0, mix, 1.0)`.

    `over` are the first and the last position that its statement has; of an item of a stack, the
    item's number within its statement, from 0, and the last one's. It is None in `others` and
    `whole`, where a curve goes over all layers of the base.
    """

    curve: Several[Number | Named]
    over: Pair[Position] | None = None


@final
class CountRange(Closed):
    """A choice: a whole number from low to high, both included. `4..10`."""

    between: Pair[int]


Count = int | CountRange
"""A number of layers, or of repetitions."""


@final
class SizeRange(Closed):
    """A choice: a whole number from low to high, both included, by steps.

    `16384..49152 step 4096`.
    """

    between: Pair[int]
    step: int = 1

    @property
    def sizes(self) -> range:
        """Return the sizes to choose from, in order."""
        low, high = self.between
        return range(low, high + 1, max(1, self.step))


Size = int | SizeRange | Named
"""A number of tokens or neurons."""


def count_ends(count: Count) -> tuple[int, int]:
    """Return the least and the greatest value of a count."""
    return count.between if isinstance(count, CountRange) else (count, count)


def count_text(count: Count) -> str:
    """Return `7` or `4..10`."""
    return "..".join(map(str, count.between)) if isinstance(count, CountRange) else str(count)


Let = Number | Interval | OneOfNumbers
"""The number or choice behind a name."""
Value = Let | Named | Curve


def over_positions(value: Value, first: int, last: int) -> Value:
    """Return a curve without positions of its own as one from the first to the last."""
    if isinstance(value, Curve) and value.over is None:
        return built(Curve, curve=value.curve, over=(first, last))
    return value
