"""The words and signs of the grammar's terminals."""

from gptailor.lang.lexicon import spelled


def test_signs_are_spelled_too():
    assert spelled()["EQUAL"] == "="
    assert "NAME" not in spelled()
