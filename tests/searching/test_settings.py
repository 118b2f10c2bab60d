"""The settings of a search: flags over the plan's block."""

import pytest

import gptailor
from gptailor.searching.settings import Flags, WishError, settings

BRIDGED = 'model base = "./base"\ndrop any 1 of L1..L3\nbridge on "t.txt"\n'


def test_finalists_are_bridged_at_the_end_or_no_plan_is() -> None:
    plan = gptailor.loads(f"tailor 1\n{BRIDGED}")
    objectives = ('nll("t.txt")',)
    assert settings(plan, Flags(objectives, finalists=1)).finalists == 1
    with pytest.raises(WishError, match="or 'bridge' with --bridge finalists"):
        settings(plan, Flags(objectives, finalists=1, bridge="each"))


def test_a_search_without_an_objective_names_its_argument() -> None:
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\nmaybe drop L1\n')
    with pytest.raises(WishError, match=r"add --objective 'nll\(\"text\.txt\"\)'"):
        settings(plan, Flags())
