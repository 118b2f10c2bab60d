"""Suggestions for misspelt names."""

from pathlib import Path

import pytest

from gptailor.plan.faults import nearest, nearest_path
from gptailor.plan.registry import METHODS


@pytest.mark.parametrize(
    ("name", "known"), [("tys", "ties"), ("tie", "ties"), ("slrp", "slerp"), ("code", "")]
)
def test_a_misspelt_method_has_the_nearest_name(name: str, known: str) -> None:
    assert nearest(name, METHODS.names()) == (f"did you mean '{known}'?" if known else "")


def test_a_missing_text_is_not_a_folder_with_half_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    assert not nearest_path(tmp_path / "math.jsonl")
    (tmp_path / "maths.jsonl").touch()
    assert "maths.jsonl" in nearest_path(tmp_path / "math.jsonl")
