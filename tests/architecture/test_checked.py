"""The parts that `tests/support/checked.py` leaves out are never checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import beartype
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.support.checked import jaxtyped

Rows = Float[Tensor, "n d"]
Tree = dict[str, "Tree"]


@pytest.fixture
def checked() -> Callable[..., object]:
    return jaxtyped(typechecker=beartype.beartype)


def length(text: str) -> int:
    return len(text) if text else "none"  # type: ignore[return-value]


def summed(one: Rows, others: list[Rows]) -> Float[Tensor, " d"]:
    return sum((other.sum(0) for other in others), one.sum(0))


def first_sum(one: Rows, other: Rows) -> Float[Tensor, " n"]:
    return one.sum(1) + other.sum(1)[: len(one)]


def depth(tree: Tree, counted: int) -> int:
    return 1 + max((depth(its, counted) for its in tree.values()), default=0)


def numbers(last: int) -> Iterator[int]:
    yield from range(last)


class Counter:
    @staticmethod
    def twice(number: int) -> int:
        return 2 * number


@dataclass
class Named:
    name: str


@dataclass
class Held:
    rows: Rows


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [
        (length, ("text",), (5,)),
        (length, ("text",), ("",)),  # its result
        (summed, (torch.ones(2, 3), [torch.ones(2, 3)]), (torch.ones(2, 3), torch.ones(3))),
        (depth, ({"a": {}}, 1), ({"a": {}}, "b")),
        (numbers, (3,), ("3",)),
        (Named, ("base",), (1,)),
        (Held, (torch.ones(2, 3),), (torch.ones(2),)),
    ],
)
def test_a_wrong_argument_or_answer_is_refused(
    checked: Callable[..., object], function: object, right: object, wrong: object
) -> None:
    its = checked(function)
    its(*right)
    with pytest.raises(Exception, match=r"(?i)violates|type-check error"):
        its(*wrong)


def test_axes_of_one_name_agree(checked: Callable[..., object]) -> None:
    with pytest.raises(Exception, match=r"(?i)type-check error"):
        checked(first_sum)(torch.ones(2, 3), torch.ones(2, 4))


def test_a_checked_static_method_stays_static(checked: Callable[..., object]) -> None:
    method = checked(vars(Counter)["twice"])
    assert isinstance(method, staticmethod)
    assert method.__func__(2) == 4
    with pytest.raises(Exception, match="violates"):
        method.__func__("2")
