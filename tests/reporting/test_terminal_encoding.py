"""Texts for terminals that lack some characters."""

import pytest

from gptailor.reporting.layer_cells import RUN_MARKS, SHARES, SYMBOLS
from gptailor.reporting.terminal_encoding import in_encoding


@pytest.mark.parametrize(
    ("text", "encoding", "wanted"),
    [
        ("b²◆ ▁▄█", "utf-8", "b²◆ ▁▄█"),
        ("b²◆ ▁▄█", None, "b²◆ ▁▄█"),
        ("b²◆ ▁▄█", "ascii", "b2* 148"),
        ("b²· ±", "iso-8859-1", "b²· ±"),
        ("b²◆ ±", "iso-8859-1", "b2* +-"),
        ("Größe → 漢", "ascii", "Gr??e -> ?"),
        ("◆", "no-such-encoding", "*"),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(
    text: str, encoding: str | None, wanted: str
) -> None:
    assert in_encoding(text, encoding) == wanted


def test_each_symbol_of_a_map_has_another_character_there() -> None:
    kinds = ([*SYMBOLS.values()], [*SHARES], [*RUN_MARKS])
    for kind in kinds:
        found = [in_encoding(one, "ascii") for one in kind]
        assert len(set(found)) == len(kind)
        assert all(len(one) == 1 for one in found)
