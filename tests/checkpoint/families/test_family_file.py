"""Keys of a family file are rules of the same forms as the release's own."""

from typing import Any

import pytest

from gptailor.checkpoint.families.family_file import MovedKey
from gptailor.checkpoint.families.layer_config import RuleError


def moved(key: MovedKey, config: dict[str, Any], order: list[int], count: int = 4) -> Any:
    """The value of the key once layers are in another order."""
    rule = key.rule("key")
    values = rule.read(config, count)
    return rule.write(config, [values[i] for i in order])["key"]


def test_a_list_moves_with_its_layers_and_keeps_its_words() -> None:
    key = MovedKey(kind="entries", part="attn", tried=("mamba", None), absent=("mamba",) * 4)
    assert moved(key, {"key": ["mamba", None, "mamba", None]}, [1, 2]) == [None, "mamba"]
    assert moved(key, {"key": None}, [0, 1]) == ["mamba", "mamba"]
    with pytest.raises(RuleError, match="'key' is missing, and the model has 3 layers"):
        moved(key, {}, [0], count=3)
    with pytest.raises(RuleError, match="'key' of L0 is 'conv', and its family was proven with"):
        moved(key, {"key": ["conv", "mamba"]}, [0], count=2)
    untried = MovedKey(kind="entries", part="attn")
    with pytest.raises(RuleError, match="'key' of L0 is 'mamba'"):
        moved(untried, {"key": ["mamba"] * 4}, [0])


def test_numbers_of_layers_follow_them() -> None:
    key = MovedKey(kind="numbers", part="mlp", absent=(0, 2))
    assert moved(key, {"key": [1, 3]}, [3, 0, 1]) == [0, 2]
    assert moved(key, {}, [1, 2]) == [1]
    with pytest.raises(RuleError, match="'key' names layer 4, and the model has 4 layers"):
        moved(key, {"key": [4]}, [0])
    with pytest.raises(RuleError, match="'key' is missing, and should be a list of layers"):
        moved(MovedKey(kind="numbers", part="mlp"), {}, [0])


def test_a_number_of_first_layers_is_counted_again() -> None:
    key = MovedKey(kind="first", part="mlp", absent=(1,))
    assert moved(key, {"key": 2}, [1, 2, 3]) == 1
    assert moved(key, {"key": None}, [2, 3]) == 0
    with pytest.raises(RuleError, match="and a special layer would be L1, after the plain L0"):
        moved(key, {"key": 2}, [2, 0])
    with pytest.raises(RuleError, match="'key' is None, and should be an integer from 0 up"):
        moved(MovedKey(kind="first", part="mlp"), {}, [0])


@pytest.mark.parametrize(
    ("kind", "value"), [("entries", ["a", "b", "a"]), ("numbers", [0, 2]), ("first", 1)]
)
def test_a_layer_of_each_kind_remains_where_it_has_to(kind: Any, value: Any) -> None:
    key = MovedKey(kind=kind, part="mlp", tried=("a", "b"), every_kind=True)
    assert moved(key, {"key": value}, [0, 1], count=3) is not None
    with pytest.raises(RuleError, match="its family needs"):
        moved(key, {"key": value}, [1], count=3)
