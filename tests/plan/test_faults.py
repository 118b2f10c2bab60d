"""Suggestions for misspelt names."""

import pytest

from gptailor.plan.faults import nearest
from gptailor.plan.registry import METHODS


@pytest.mark.parametrize(
    ("name", "known"), [("tys", "ties"), ("tie", "ties"), ("slrp", "slerp"), ("code", "")]
)
def test_a_misspelt_method_has_the_nearest_name(name: str, known: str) -> None:
    assert nearest(name, METHODS.names()) == (f"did you mean '{known}'?" if known else "")
