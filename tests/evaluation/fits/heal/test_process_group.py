"""The shares of several processes that heal one plan."""

from gptailor.evaluation.fits.heal.process_group import ProcessGroup
from gptailor.evaluation.fits.heal.text import step_tokens


def test_shares_are_all_numbers_in_order() -> None:
    parts = [ProcessGroup(rank, 3).share(10, 15) for rank in range(3)]
    assert parts == [(10, 11), (11, 13), (13, 15)]
    assert ProcessGroup().share(10, 15) == (10, 15)


def test_long_texts_have_longer_steps_for_several_processes() -> None:
    assert [step_tokens(12_288, count) for count in (1, 4)] == [128, 128]
    assert [step_tokens(1_000_000, count) for count in (1, 4)] == [1024, 4096]
