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


def test_each_symbol_of_a_map_has_its_own_ascii_character() -> None:
    kinds = ([*SYMBOLS.values()], [*SHARES], [*RUN_MARKS])
    for kind in kinds:
        results = [in_encoding(item, "ascii") for item in kind]
        assert len(set(results)) == len(kind)
        assert all(len(item) == 1 for item in results)
